"""Sizes that articles and peers state, counted on the real shapes without their weights."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from hubctl.families import FAMILIES
from serve.bench.shapes import SHAPES
from train.adapt import find_head, resolve_targets

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


@pytest.mark.parametrize(
    ("hidden", "depths", "decoder", "parameters", "percent"),
    [
        ((24, 48, 96, 160), (2, 2, 2, 2), 128, 66_051, 4.5),  # emoji-64-seg
        ((32, 64, 160, 256), (2, 2, 2, 2), 256, 111_363, 3.0),  # SegFormer-B0
        ((64, 128, 320, 512), (3, 4, 6, 3), 768, 395_523, 1.4),  # SegFormer-B2
    ],
)
def test_a_segformer_adapter_has_a_twentieth_of_its_base_at_most(
    hidden: tuple[int, ...], depths: tuple[int, ...], decoder: int, parameters: int, percent: float
) -> None:
    config = SegformerConfig(
        hidden_sizes=list(hidden),
        depths=list(depths),
        decoder_hidden_size=decoder,
        num_labels=3,
        num_attention_heads=[1] * 4,
    )
    with torch.device("meta"):
        model: Any = SegformerForSemanticSegmentation(config)
    whole = sum(p.numel() for p in model.parameters())
    head = find_head(model)
    (default,) = [row.default_targets for row in FAMILIES if row.name == "segformer"]
    targets = [*default, *head.before]
    with torch.device("meta"):
        get_peft_model(model, LoraConfig(r=16, target_modules=targets, modules_to_save=[head.classifier]))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == parameters
    assert 100 * trained / whole == pytest.approx(percent, abs=0.05)
