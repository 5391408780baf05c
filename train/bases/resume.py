"""Training by the clock: checkpoints that survive a stop, and a rate that ends at nought."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import torch


def rate_at(progress: float, *, peak: float, warm_up: float = 0.02, floor: float = 0.01) -> float:
    """Learning rate at a share 0..1 of the planned training time: linear rise, cosine fall."""
    if progress < warm_up:
        return peak * (0.05 + 0.95 * progress / warm_up)
    fall = min(1.0, (progress - warm_up) / (1 - warm_up))
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * fall)))


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes a checkpoint in one step, so that a kill leaves the old one whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".part")
    torch.save(state, draft)
    os.replace(draft, path)


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """Reads a checkpoint of our own, or None where training has not begun."""
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=False)
    return state


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Gives every parameter group this learning rate, times its own `rate` if it has one."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("rate", 1.0)
