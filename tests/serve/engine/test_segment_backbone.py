"""Bases without a head of their own: a vision transformer as transformers saved it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import Dinov2Model, ViTForImageClassification

from hubctl.adapter.gate import gate
from hubctl.base_models import locate_base
from hubctl.errors import AdapterMismatchError, InputError
from hubctl.modeling.loading import load_segmenter
from serve.engine.requests import LoraUse
from serve.engine.segment import SegmentEngine
from tests.serve import segmenters, tiny
from tests.serve.segmenters import SEGMENTERS

KINDS: dict[str, Any] = {"linear-vit": ViTForImageClassification, "linear-dinov2": Dinov2Model}
CLASSES = (2, 3, 5)


@pytest.fixture(scope="module", params=KINDS)
def world(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[SegmentEngine, dict[int, Path]]]:
    """An engine, and an adapter for each number of classes."""
    folder, kind = tmp_path_factory.mktemp(request.param), SEGMENTERS[request.param]
    torch.manual_seed(0)
    KINDS[request.param](kind.config.backbone_config).save_pretrained(folder / "base")
    kind.processor.save_pretrained(folder / "base")
    adapters = {
        n: segmenters.write_adapter(
            folder / str(n),
            folder / "base",
            seed=n,
            targets=("q_proj", "k_proj", "v_proj"),
            heads=("classifier",),
            labels={i: f"thing {i}" for i in range(n)},
        )
        for n in CLASSES
    }
    engine = SegmentEngine(locate_base(str(folder / "base")), tiny.engine_config(total_rows=64), tiny.fetch)
    yield engine, adapters
    engine.close()


def uses(*folders: Path) -> tuple[LoraUse, ...]:
    return tuple(LoraUse(ref=tiny.pinned(folder)) for folder in folders)


@pytest.mark.parametrize("side_px", [64, 96])
def test_every_sample_has_its_own_adapter_and_classes(
    world: tuple[SegmentEngine, dict[int, Path]], side_px: int
) -> None:
    engine, adapters = world
    engine.owner.forwards.clear()
    engine.owner.calls.clear()
    asked = [(n, torch.randn(1, 3, side_px, side_px)) for n in CLASSES * 3]
    with ThreadPoolExecutor(len(asked)) as pool:
        got = list(pool.map(lambda item: engine.logits_of(item[1], uses(adapters[item[0]])), asked))
    # How many share one depends on how soon the threads start: on a busy machine 9 took 5 forwards.
    assert engine.owner.forwards["model"] < engine.owner.calls["model"]
    for (n, pixels), found in zip(asked, got, strict=True):
        labels = {i: f"thing {i}" for i in range(n)}
        base: Any = load_segmenter(engine._core.base.path, labels)
        model = PeftModel.from_pretrained(base, adapters[n]).eval()
        with torch.no_grad():
            want = model(pixel_values=pixels).logits[0]
        assert want.abs().max() > 0.05
        assert found.shape == want.shape == (n, side_px // 8, side_px // 8)
        assert (found - want).abs().max() <= 1e-5


def test_without_a_head_there_is_nothing_to_label_with(
    world: tuple[SegmentEngine, dict[int, Path]], tmp_path: Path
) -> None:
    engine, _ = world
    lora = segmenters.write_adapter(tmp_path, engine._core.base.path, seed=1, targets=("q_proj",))
    for adapters in ((), uses(lora)):
        with pytest.raises(InputError, match="knows no classes of its own") as caught:
            engine.logits_of(torch.zeros(1, 3, 64, 64), adapters)
        assert "trained with its head" in (caught.value.hint or "")


def test_the_gate_tells_what_fits(world: tuple[SegmentEngine, dict[int, Path]], tmp_path: Path) -> None:
    engine, adapters = world
    base = engine._core.base
    assert {head.name for head in gate(adapters[3], base).heads} == {"classifier.weight", "classifier.bias"}
    tensors = load_file(adapters[3] / "adapter_model.safetensors")
    key = "base_model.model.classifier.weight"
    for name, problem in {
        "image classifier": (tensors[key].flatten(1), "'classifier.weight' is 0x16x1x1 in the base, 3x16"),
        "other width": (torch.zeros(3, 24, 1, 1), "3x24x1x1 in the adapter"),
    }.items():
        wrong = shutil.copytree(adapters[3], tmp_path / name)
        save_file(tensors | {key: problem[0]}, wrong / "adapter_model.safetensors")
        with pytest.raises(AdapterMismatchError, match=problem[1]):
            gate(wrong, base)


@pytest.mark.parametrize("old", [True, False])
def test_a_class_of_ones_own_around_the_backbone_means_the_same(
    world: tuple[SegmentEngine, dict[int, Path]], tmp_path: Path, old: bool
) -> None:
    """Named as transformers names backbones in its own classes, before its renames and after."""
    engine, adapters = world
    own = {"vit": "vit.", "dinov2": "dinov2."}[engine._model.backbone.config.model_type]

    def rename(key: str) -> str:
        if old:
            for letter, word in {"q": "query", "k": "key", "v": "value"}.items():
                key = key.replace(f"attention.{letter}_proj", f"attention.attention.{word}")
            key = key.replace("backbone.layers.", "backbone.encoder.layer.")
        return key.replace("backbone.", own)

    other = shutil.copytree(adapters[5], tmp_path / "own")
    tensors = load_file(other / "adapter_model.safetensors")
    save_file({rename(key): t for key, t in tensors.items()}, other / "adapter_model.safetensors")
    pixels = torch.randn(1, 3, 64, 64)
    found = engine.logits_of(pixels, uses(other))
    assert torch.equal(found, engine.logits_of(pixels, uses(adapters[5])))
