"""Random adapters that fit a base, in the files that diffusers and peft write."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from hubctl.adapter.layout import CONFIG_PEFT, WEIGHTS_DIFFUSERS, WEIGHTS_PEFT
from hubctl.families import Family
from hubctl.refs import PinnedRef


def write_adapters(
    folder: Path, denoiser: nn.Module, family: Family, *, count: int, rank: int, dtype: torch.dtype
) -> list[Path]:
    """Write `count` adapters of one rank over the family's default targets."""
    layers = {
        name: layer
        for name, layer in denoiser.named_modules()
        if isinstance(layer, nn.Linear) and name.endswith(tuple(f".{t}" for t in family.default_targets))
    }
    folders = []
    for number in range(count):
        path = folder / f"adapter-{number}"
        path.mkdir(parents=True)
        generator = torch.Generator().manual_seed(number)
        peft = family.denoiser == "model"
        prefix = "base_model.model." if peft else f"{family.denoiser}."
        tensors: dict[str, torch.Tensor] = {}
        for name, layer in layers.items():
            a = torch.randn(rank, layer.in_features, generator=generator) * 0.02
            b = torch.randn(layer.out_features, rank, generator=generator) * 0.02
            tensors |= {f"{prefix}{name}.lora_A.weight": a.to(dtype)}
            tensors |= {f"{prefix}{name}.lora_B.weight": b.to(dtype)}
        save_file(tensors, path / (WEIGHTS_PEFT if peft else WEIGHTS_DIFFUSERS))
        if peft:
            config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "bias": "none"}
            config["target_modules"] = list(family.default_targets)
            (path / CONFIG_PEFT).write_text(json.dumps(config))
        folders.append(path)
    return folders


def pinned(folder: Path, number: int = 0) -> PinnedRef:
    """A reference to an adapter folder; different numbers make it different adapters."""
    digest = hashlib.sha256(f"{folder}#{number}".encode()).hexdigest()
    return PinnedRef(f"bench/{folder.name}-{number}", "main", f"{folder}#{number}", digest)


def fetch(ref: PinnedRef) -> Path:
    """The folder behind `pinned`."""
    return Path(ref.commit.rpartition("#")[0])
