"""Tiny random adapters for diffusers pipelines, saved as the library saves them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.training_utils import _collate_lora_metadata
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import nn

from hubctl.families import detect_family
from hubctl.refs import PinnedRef
from serve.engine.config import EngineConfig
from tests.device import DEVICE

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
TEXT = ("q_proj", "v_proj")
CONVOLUTIONS = ("conv_in", "conv1", "conv2", "proj_in", "conv_shortcut", "time_emb_proj")

# A GPU would round what convolutions multiply to 10 bits, and batches of other sizes in other ways.
torch.backends.cudnn.allow_tf32 = False


def engine_config(**settings: Any) -> EngineConfig:
    """Settings of an engine that computes where the references do, as exactly."""
    return EngineConfig(**{"device": DEVICE, "dtype": "float32"} | settings)


def load_pipeline(base: Path, loader: Any = DiffusionPipeline, **components: Any) -> Any:
    """The pipeline as a diffusers user loads it, in float32; what it was saved without is named as None."""
    index = json.loads((base / "model_index.json").read_text())
    components = {name: None for name, part in index.items() if part == [None, None]} | components
    pipeline = loader.from_pretrained(base, dtype=torch.float32, **components)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def write_lora(
    folder: Path,
    base: Path,
    *,
    seed: int,
    rank: int = 4,
    alpha: float | None = None,
    targets: Sequence[str] = ATTENTION,
    text_targets: Sequence[str] = (),
    text_prefix: str = "",
    strength: float = 0.3,
    **settings: Any,
) -> Path:
    """An adapter for `base`'s denoiser (and text encoders) with random weights, saved by diffusers itself."""
    pipeline = load_pipeline(base)
    family = detect_family(base)
    config = LoraConfig(
        r=rank, lora_alpha=rank if alpha is None else alpha, target_modules=list(targets), **settings
    )
    text = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(text_targets))
    configs = {family.denoiser: config} | {name: text for name in family.text_encoders if text_targets}
    layers, parts = {}, {}
    for i, (name, config) in enumerate(configs.items()):
        parts[name] = module = getattr(pipeline, name)
        module.add_adapter(config)
        randomise(module, seed + i, strength)
        prefix = "" if name == family.denoiser else text_prefix
        state = get_peft_model_state_dict(module)
        layers[f"{name}_lora_layers"] = {f"{prefix}{key}": value for key, value in state.items()}
    pipeline.save_lora_weights(folder, **layers, **_collate_lora_metadata(parts))
    return folder


def pinned(folder: Path) -> PinnedRef:
    """The reference of an adapter folder; the folder's path is its commit, for `fetch` to find it again."""
    weights = next(folder.glob("*.safetensors"))
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    return PinnedRef(f"tests/{folder.name}", "main", str(folder), digest)


def fetch(ref: PinnedRef) -> Path:
    """The folder behind `pinned`."""
    return Path(ref.commit)


def rewrite_config(folder: Path, name: str, **changes: Any) -> None:
    """Change entries of a JSON file."""
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def randomise(module: nn.Module, seed: int, strength: float) -> None:
    """Fill every LoRA matrix with noise of its own, so that the adapter changes something."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(module.named_parameters()):
        if "lora_" in name:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data = noise * strength / max(1, parameter[0].numel()) ** 0.5
