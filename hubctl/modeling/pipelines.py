"""The one door to diffusers' pipelines: a base's own, with what its folder lacks left out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from hubctl.modeling.variants import variant_alone


def load_pipeline(
    folder: Path, dtype: torch.dtype | Mapping[str, torch.dtype], *, without: Sequence[str] = ()
) -> Any:
    """The pipeline in `folder`; asks no hub.

    Args:
        folder: A diffusers pipeline.
        dtype: Of all weights, or by component, with `default` for the rest.
        without: Components to leave out besides those that the folder lacks.
    """
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    parts = [name for name, value in index.items() if isinstance(value, list)]
    # SD3 runs without its T5, but diffusers must be told that it is not there.
    absent: dict[str, Any] = {name: None for name in parts if name in without or not (folder / name).is_dir()}
    if "safety_checker" in absent:
        absent["requires_safety_checker"] = False  # or diffusers warns
    kinds = dtype if isinstance(dtype, torch.dtype) else dict(dtype)
    return DiffusionPipeline.from_pretrained(
        folder, dtype=kinds, variant=_variant(folder), local_files_only=True, **absent
    )


def _variant(folder: Path) -> str | None:
    """What to ask diffusers for where one of the components needs it; it takes the others as they are."""
    components = sorted(path.parent for path in folder.glob("*/config.json"))
    return next((found for found in map(variant_alone, components) if found), None)
