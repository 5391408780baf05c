from __future__ import annotations

import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
import torchao.quantization
from peft import PeftModel
from torch import nn
from torchao.utils import TorchAOBaseTensor

from hubctl.base_models import locate_base
from hubctl.errors import InputError
from hubctl.modeling.loading import load_segmenter
from hubctl.modeling.quantize import quantize
from serve.engine.config import Quantize
from serve.engine.generate import ImageEngine
from serve.engine.requests import ImageRequest, LoraUse
from serve.engine.segment import SegmentEngine
from tests.serve import reference, segmenters, tiny, tiny_pipelines

TOLERANCE = 1e-4
"""In float32 a quantised layer multiplies by the scale afterwards, the same weights written out before."""
CONFIGS = {
    "int8": torchao.quantization.Int8WeightOnlyConfig(set_inductor_config=False),
    "fp8": torchao.quantization.Float8WeightOnlyConfig(set_inductor_config=False),
}
KINDS = [kind for kind in get_args(Quantize) if kind != "none"]


def quantised(module: nn.Module) -> set[str]:
    """Names of the parameters that torchao holds."""
    return {name for name, weight in module.named_parameters() if isinstance(weight, TorchAOBaseTensor)}


def linear(module: nn.Module) -> set[str]:
    return {f"{name}.weight" for name, layer in module.named_modules() if isinstance(layer, nn.Linear)}


@dataclass(frozen=True)
class World:
    """A tiny base, and adapters of every kind for it."""

    base: Path
    uses: dict[str, LoraUse]

    def requests(self) -> list[ImageRequest]:
        plain = ImageRequest(prompt="red apple", seed=7, num_inference_steps=3)
        return [
            plain,
            replace(plain, prompt="dog", seed=1, loras=(self.uses["attention"],)),
            replace(plain, prompt="cat", seed=2, num_inference_steps=5, loras=(self.uses["locon"],)),
            replace(plain, prompt="hat", seed=3, loras=(replace(self.uses["dora"], scale=0.7),)),
            replace(plain, prompt="sun", seed=4, loras=(self.uses["text"], self.uses["dora"])),
        ]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("quantize")
    base = tiny_pipelines.write_pipeline(folder / "base", "sd1")
    every = (*tiny.ATTENTION, *tiny.CONVOLUTIONS)
    settings: dict[str, dict[str, Any]] = {
        "attention": {},
        "locon": {"targets": every, "strength": 0.2},
        "dora": {"targets": every, "use_dora": True},
        "text": {"text_targets": tiny.TEXT},
    }
    made = {
        name: tiny.write_lora(folder / name, base, seed=i, **more)
        for i, (name, more) in enumerate(settings.items())
    }
    return World(base, {name: LoraUse(ref=tiny.pinned(path)) for name, path in made.items()})


def written_out(base: Path, kind: str, folder: Path) -> Path:
    """The base as one that has the quantised weights in float32 from the start."""
    pipeline = tiny.load_pipeline(base)
    torchao.quantization.quantize_(pipeline.unet, CONFIGS[kind])
    for name in quantised(pipeline.unet):
        layer = pipeline.unet.get_submodule(name.removesuffix(".weight"))
        layer.weight = nn.Parameter(layer.weight.dequantize())
    pipeline.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_mixed_adapters_are_what_diffusers_makes_of_the_weights_written_out(
    world: World, tmp_path: Path, kind: Quantize, offload: bool
) -> None:
    plain = written_out(world.base, kind, tmp_path)
    config = tiny.engine_config(total_rows=32, quantize=kind, offload=offload)
    engine = ImageEngine(locate_base(str(world.base)), config, tiny.fetch)
    requests = world.requests()
    try:
        pipeline = engine._template
        assert quantised(pipeline.unet) == linear(pipeline.unet)
        assert not quantised(pipeline.text_encoder) | quantised(pipeline.vae)
        with ThreadPoolExecutor(len(requests)) as pool:
            made = list(pool.map(engine.generate_floats, requests))
        assert engine.owner.forwards["unet"] < engine.owner.calls["unet"]
    finally:
        engine.close()
    for request, images in zip(requests, made, strict=True):
        assert np.abs(images - reference.images(plain, request)).max() <= TOLERANCE, request
    # The weights are others than before, and it shows.
    assert np.abs(made[0] - reference.images(world.base, requests[0])).max() > 5 * TOLERANCE


@pytest.mark.parametrize("kind", KINDS)
def test_a_segmenter_is_what_peft_makes_of_the_same_quantised_backbone(
    tmp_path: Path, kind: Quantize
) -> None:
    base = segmenters.write_segmenter(tmp_path / "base", "segformer")
    targets = segmenters.SEGMENTERS["segformer"].targets[:2]
    folders = [
        segmenters.write_adapter(tmp_path / f"lora{i}", base, seed=i, targets=targets, heads=("decode_head",))
        for i in range(3)
    ]
    pixels = torch.randn(3, 3, segmenters.SIDE_PX, segmenters.SIDE_PX)
    uses = [LoraUse(ref=tiny.pinned(folder)) for folder in folders]
    engine = SegmentEngine(
        locate_base(str(base)), tiny.engine_config(quantize=kind, max_gather_s=1.0), tiny.fetch
    )
    try:
        backbone = engine._model.segformer
        assert quantised(engine._model) == {f"segformer.{name}" for name in linear(backbone)}
        with ThreadPoolExecutor(3) as pool:
            made = list(pool.map(lambda i: engine.logits_of(pixels[i : i + 1], (uses[i],)), range(3)))
    finally:
        engine.close()
    for i, logits in enumerate(made):
        model = load_segmenter(base)
        torchao.quantization.quantize_(model.segformer, CONFIGS[kind])
        with warnings.catch_warnings(), torch.no_grad():
            warnings.filterwarnings("ignore", "TorchaoLoraLinear was instantiated")  # it cannot merge
            want = PeftModel.from_pretrained(model, folders[i]).eval()(pixels[i : i + 1]).logits[0]
        assert (logits - want).abs().max() <= TOLERANCE


def test_without_torchao_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)
    quantize(nn.Linear(2, 2), "none")
    with pytest.raises(InputError, match="'int8' need torchao") as caught:
        quantize(nn.Linear(2, 2), "int8")
    assert caught.value.hint == "pip install 'hubctl[quantize]'"
