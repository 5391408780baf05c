"""Tiny random adapters, and a SegFormer, built from configurations and saved as their libraries save them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.training_utils import _collate_lora_metadata
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from torch import nn
from transformers import (
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessorPil,
)

from hubctl.adapter.package import BaseIdentity, Manifest, manifest_json
from hubctl.families import detect_family
from hubctl.refs import PinnedRef

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
TEXT = ("q_proj", "v_proj")
CONVOLUTIONS = ("conv_in", "conv1", "conv2", "proj_in", "conv_shortcut", "time_emb_proj")


def write_segformer(folder: Path, classes: int = 2) -> Path:
    """A SegFormer for 64 px; its BatchNorm has seen something, so that its statistics matter."""
    torch.manual_seed(0)
    model = SegformerForSemanticSegmentation(
        SegformerConfig(
            hidden_sizes=[16, 32],
            num_encoder_blocks=2,
            depths=[1, 1],
            sr_ratios=[2, 1],
            patch_sizes=[7, 3],
            strides=[4, 2],
            num_attention_heads=[1, 2],
            mlp_ratios=[2, 2],
            decoder_hidden_size=32,
            initializer_range=0.1,
            id2label={i: f"thing {i}" for i in range(classes)},
        )
    )
    _stir(model)
    model.save_pretrained(folder)
    SegformerImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


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
        _randomise(module, seed + i, strength)
        prefix = "" if name == family.denoiser else text_prefix
        state = get_peft_model_state_dict(module)
        layers[f"{name}_lora_layers"] = {f"{prefix}{key}": value for key, value in state.items()}
    pipeline.save_lora_weights(folder, **layers, **_collate_lora_metadata(parts))
    return folder


def write_segment_adapter(
    folder: Path,
    base: Path,
    *,
    seed: int,
    rank: int = 4,
    targets: Sequence[str] = ("q_proj", "v_proj"),
    heads: Sequence[str] = ("decode_head",),
    labels: dict[int, str] | None = None,
) -> Path:
    """A peft adapter for a SegFormer, with the heads in `heads` replaced whole."""
    torch.manual_seed(seed)
    model = load_segformer(base, labels)
    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules=list(targets), modules_to_save=list(heads) or None
    )
    adapted: Any = get_peft_model(model, config)
    _randomise(adapted, seed, 0.3)
    for name, module in adapted.named_modules():
        if "modules_to_save" in name:
            _stir(module)
    adapted.save_pretrained(folder, save_embedding_layers=False)
    if labels:
        data = {"labels": {str(number): name for number, name in labels.items()}}
        manifest = Manifest(task="image-segmentation", base=BaseIdentity(id="tiny"), data=data)
        (folder / "hubctl.json").write_text(manifest_json(manifest))
    return folder


def load_segformer(base: Path, labels: dict[int, str] | None = None) -> Any:
    """The model as a transformers user loads it, with other classes if named."""
    changes = {"id2label": labels} if labels else {}
    return SegformerForSemanticSegmentation.from_pretrained(
        base, ignore_mismatched_sizes=True, dtype=torch.float32, **changes
    ).eval()


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


def _randomise(module: nn.Module, seed: int, strength: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(module.named_parameters()):
        if "lora_" in name:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data = noise * strength / max(1, parameter[0].numel()) ** 0.5


def _stir(module: nn.Module) -> None:
    """Give every BatchNorm statistics of its own."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean = torch.randn(part.num_features) * 0.1
            part.running_var = torch.rand(part.num_features) + 0.5
