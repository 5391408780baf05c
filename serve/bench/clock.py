"""How long a module's forwards take in all, on its device; and what the processor is called."""

from __future__ import annotations

import platform
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn


class ForwardClock:
    """Sums the time of a module's forwards while the block runs."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._gpu = next(module.parameters()).is_cuda
        self._marks: list[Any] = []

    def __enter__(self) -> ForwardClock:
        """Start to listen."""
        self._hooks = [
            self._module.register_forward_pre_hook(self._mark),
            self._module.register_forward_hook(self._mark),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        for hook in self._hooks:
            hook.remove()

    def busy_s(self) -> float:
        """Seconds between the start and the end of each forward so far."""
        pairs = zip(self._marks[::2], self._marks[1::2], strict=True)
        if not self._gpu:
            return sum(end - begin for begin, end in pairs)
        torch.cuda.synchronize()
        return sum(begin.elapsed_time(end) for begin, end in pairs) / 1000

    def _mark(self, *_: object) -> None:
        if self._gpu:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())


def processor_name() -> str:
    """The processor's name, as Linux tells it; elsewhere what Python knows."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
