"""Weights that are there as a variant alone (`model.fp16.safetensors`): libraries must be told."""

from __future__ import annotations

import re
from pathlib import Path

_PLAIN = ("model.safetensors", "model.safetensors.index.json")


def variant_alone(component: Path) -> str | None:
    """What to ask for where a component's folder has no weights but those of a variant: `fp16`, say."""
    plain = any(path.name.endswith(_PLAIN) for path in component.iterdir())
    files = sorted(component.glob("*model.*.safetensors"))
    return re.split(r"[.-]", files[0].name)[1] if files and not plain else None
