"""Which precision the recipes compute in."""

from __future__ import annotations

import torch


def autocast(device: str = "cpu") -> torch.autocast:
    """bfloat16 where the hardware has it; emulated, on older processors, it is 20 times slower."""
    fast = device != "cpu" or bool(torch.cpu.get_capabilities().get("avx512_bf16"))
    return torch.autocast(device, torch.bfloat16, enabled=fast)
