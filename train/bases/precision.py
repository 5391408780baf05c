"""Which precision the recipes compute in."""

from __future__ import annotations

import torch


def autocast(device: str = "cpu") -> torch.autocast:
    """bfloat16 where the hardware has matrix units for it; elsewhere it is slower, emulated 20 times."""
    fast = device != "cpu" or bool(torch.cpu.get_capabilities().get("amx_bf16"))
    return torch.autocast(device, torch.bfloat16, enabled=fast)
