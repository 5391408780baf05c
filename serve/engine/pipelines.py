"""The pipelines of one base, and which of their modules are shared between requests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import torch

from hubctl.families import Family
from serve.engine.config import EngineConfig
from serve.engine.shared_module import CallShape


def load_pipeline(folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """The base's own pipeline on its device; parts that the folder lacks are left out."""
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    parts = [name for name, value in index.items() if isinstance(value, list)]
    # SD3 runs without its T5, but diffusers must be told that it is not there.
    absent = {name: None for name in parts if not (folder / name).is_dir()}
    pipeline = diffusers.DiffusionPipeline.from_pretrained(
        folder, dtype=dtype, local_files_only=True, **absent
    ).to(device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def shared_components(pipeline: Any, family: Family) -> dict[str, torch.nn.Module]:
    """The heavy modules: text encoders, denoiser and VAE, by name."""
    return {
        name: module.eval()
        for name, module in pipeline.components.items()
        if isinstance(module, torch.nn.Module)
        and (name.startswith("text_encoder") or name in (family.denoiser, "vae"))
    }


def call_shape(name: str, family: Family, config: EngineConfig) -> CallShape:
    """How the component `name` is called."""
    if name == "vae":
        ignored = frozenset({"generator"})  # taken for the sake of video decoders; image decoders are exact
        return CallShape(method="decode", stage=2, max_rows=config.max_decode_rows, ignored=ignored)
    if name == family.denoiser:
        return CallShape(stage=1, max_rows=config.max_batch_rows, unbatched=frozenset(family.unbatched))
    return CallShape(stage=0, max_rows=config.max_batch_rows)
