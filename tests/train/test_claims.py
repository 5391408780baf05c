"""Sizes that articles and peers state, counted on the real shapes without their weights."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from peft import LoraConfig

from hubctl.families import FAMILIES
from serve.bench.shapes import SHAPES
from train.adapt import resolve_targets

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


@pytest.mark.parametrize(
    ("shape", "family", "rank", "parameters", "mebibytes"),
    [
        # https://huggingface.co/blog/lora: one file of 3.29 MB
        ("sd15", "sd1", 4, 797_184, 3.04),
        ("sd15", "sd1", 16, 3_188_736, 12.2),
        ("sdxl", "sdxl", 4, 5_806_080, 22.15),
        ("sd3-medium", "sd3", 4, 1_179_648, 4.5),
        # https://huggingface.co/blog/flux-qlora: 4,669,440 trainable parameters
        ("flux1", "flux", 4, 4_669_440, 17.8),
    ],
)
def test_an_adapter_has_as_many_parameters_as_the_articles_say(
    shape: str, family: str, rank: int, parameters: int, mebibytes: float
) -> None:
    with torch.device("meta"):
        denoiser: Any = getattr(diffusers, SHAPES[shape].model)(**SHAPES[shape].config)
    targets = resolve_targets(denoiser, ATTENTION, default_targets=())
    denoiser.requires_grad_(False)
    with torch.device("meta"):
        denoiser.add_adapter(LoraConfig(r=rank, target_modules=targets))
    trained = sum(p.numel() for p in denoiser.parameters() if p.requires_grad)
    assert trained == parameters
    assert trained * 4 / 2**20 == pytest.approx(mebibytes, abs=0.05)
    (default,) = [row.default_targets for row in FAMILIES if row.name == family]
    assert set(ATTENTION) <= set(default)
