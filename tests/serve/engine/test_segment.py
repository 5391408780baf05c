from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from hubctl.adapter.names import current_name, renames
from hubctl.base_models import BaseModel, locate_base
from hubctl.errors import AdapterError, AdapterMismatchError, InputError
from hubctl.modeling.loading import load_segmenter
from serve.engine.requests import ImageRequest, LoraUse, SegmentRequest
from serve.engine.segment import SegmentEngine
from tests.serve import reference, segmenters, tiny
from tests.serve.segmenters import SEGMENTERS, Segmenter
from train.adapt import find_head

TOLERANCE = 1e-5
PREFIX = "base_model.model."
PET = {0: "pet", 1: "border", 2: "background"}
FIVE = {i: f"class {i}" for i in range(5)}


Tensors = dict[str, torch.Tensor]
Adapters = dict[str, tuple[Path, dict[int, str] | None]]


@dataclass(frozen=True)
class World:
    """A tiny base, adapters for it, and an engine."""

    name: str
    kind: Segmenter
    base: BaseModel
    engine: SegmentEngine
    adapters: Adapters
    """Name → folder, and the classes where they are not the base's."""

    def ask(self, name: str | None, seed: int = 0) -> SegmentRequest:
        image = np.random.default_rng(seed).integers(0, 256, (80, 80, 3), dtype=np.uint8)
        return self.use(self.adapters[name][0] if name else None, image)

    def use(self, folder: Path | None, image: np.ndarray) -> SegmentRequest:
        return SegmentRequest(image=image, adapter=LoraUse(ref=tiny.pinned(folder)) if folder else None)

    def difference(self, name: str | None, request: SegmentRequest, logits: torch.Tensor) -> float:
        want = reference.logits(self.base.path, request, self.adapters[name][1] if name else None)
        assert want.shape == logits.shape
        assert want.abs().max() > 0.05
        return float((logits - want).abs().max())

    def write(self, folder: Path, **settings: Any) -> Path:
        given: dict[str, Any] = {
            "seed": 8,
            "targets": self.kind.targets[:2],
            "heads": (self.kind.head,),
        } | settings
        return segmenters.write_adapter(folder, self.base.path, **given)


def write_adapters(folder: Path, base: Path, kind: Segmenter) -> Adapters:
    def write(
        name: str,
        seed: int,
        *heads: str,
        targets: tuple[str, ...] = kind.targets[:2],
        rank: int = 4,
        labels: dict[int, str] | None = None,
    ) -> tuple[Path, dict[int, str] | None]:
        where = segmenters.write_adapter(
            folder / name, base, seed=seed, targets=targets, heads=heads, rank=rank, labels=labels
        )
        return where, labels

    head = find_head(kind.model())
    return {
        "pet": write("pet", 1, kind.head, labels=PET),
        "five": write("five", 2, *(kind.all_heads or (kind.head,)), rank=8, labels=FIVE),
        "same-classes": write("same-classes", 3, kind.head),
        "no-head": write("no-head", 4, targets=kind.targets),
        # A new last layer alone, and LoRA in the layers of the head that stay the base's.
        "classifier": write(
            "classifier", 5, kind.classifier, targets=(*kind.targets, *kind.beside), labels=PET
        ),
        "trained": write(
            "trained", 6, head.classifier, targets=(*kind.targets[:2], *head.before), rank=8, labels=FIVE
        ),
    }


@pytest.fixture(scope="module", params=SEGMENTERS)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp(request.param)
    kind = SEGMENTERS[request.param]
    base = segmenters.write_segmenter(folder / "base", request.param)
    adapters = write_adapters(folder, base, kind)
    located = locate_base(str(base))
    engine = SegmentEngine(located, tiny.engine_config(total_rows=64), tiny.fetch)
    yield World(request.param, kind, located, engine, adapters)
    info = engine.info()
    engine.close()
    assert (info.running, info.queued) == (0, 0)
    assert all(engine._core.residency.leases(ref) == 0 for ref in info.resident)


NAMES = ["pet", "five", "same-classes", "no-head", "classifier", "trained", None]


@pytest.mark.parametrize("name", NAMES)
def test_one_adapter_is_what_peft_makes_of_it(world: World, name: str | None) -> None:
    request = world.ask(name)
    assert world.difference(name, request, world.engine.logits(request)) <= TOLERANCE


def test_all_of_them_in_one_forward(world: World) -> None:
    asked = [(name, world.ask(name, seed)) for seed, name in enumerate(NAMES * 2)]
    owner = world.engine.owner
    owner.forwards.clear()
    with ThreadPoolExecutor(len(asked)) as pool:
        got = list(pool.map(lambda item: world.engine.logits(item[1]), asked))
    assert max(world.difference(*item, g) for item, g in zip(asked, got, strict=True)) <= TOLERANCE
    assert owner.forwards["model"] <= len(asked) / 2


def test_labels_have_the_images_own_size(world: World) -> None:
    image = np.random.default_rng(5).integers(0, 256, (45, 56, 3), dtype=np.uint8)
    request = world.use(world.adapters["pet"][0], image)
    result = world.engine.segment(request)
    want = reference.logits(world.base.path, request, PET)
    large = functional.interpolate(want[None], size=(45, 56), mode="bilinear", align_corners=False)[0]
    assert result.labels.dtype == np.uint8
    assert (result.labels == large.argmax(0).numpy()).mean() > 0.999  # but for ties
    assert result.id2label == PET
    assert set(result.scores) == set(np.unique(result.labels).tolist())
    probability = large.softmax(0).max(0).values.numpy()
    for label, score in result.scores.items():
        assert score == pytest.approx(probability[result.labels == label].mean(), abs=1e-3)
    assert result.timings.total_s >= result.timings.run_s > 0


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (3, 40), (4, 3)])
def test_narrow_images_are_not_taken_for_channels(world: World, shape: tuple[int, int]) -> None:
    """Three rows of pixels look to transformers like three channels, unless it is told."""
    image = np.random.default_rng(6).integers(0, 256, (*shape, 3), dtype=np.uint8)
    request = world.use(None, image)
    pixels = reference.processed(world.base.path, image)
    want = load_segmenter(world.base.path)(pixel_values=pixels).logits[0]
    assert (world.engine.logits(request) - want).abs().max() <= TOLERANCE
    assert world.engine.segment(request).labels.shape == shape


def test_labels_without_an_adapter_are_the_bases(world: World) -> None:
    assert world.engine.segment(world.ask(None)).id2label == {0: "thing 0", 1: "thing 1"}
    assert world.engine.segment(world.ask("no-head")).id2label == {0: "thing 0", 1: "thing 1"}


def test_classes_without_names_are_numbered(world: World, tmp_path: Path) -> None:
    folder = world.write(tmp_path / "unnamed", labels=PET)
    (folder / "hubctl.json").unlink()
    result = world.engine.segment(world.use(folder, world.ask(None).image))
    assert result.id2label == {0: "class 0", 1: "class 1", 2: "class 2"}


def changed(folder: Path, change: Callable[[Tensors], Tensors]) -> Path:
    """The adapter in `folder` with other tensors."""
    weights = folder / "adapter_model.safetensors"
    save_file(change(load_file(weights)), weights)
    return folder


def test_a_failing_request_disturbs_nobody(world: World, tmp_path: Path) -> None:
    huge = changed(
        world.write(tmp_path / "huge"),
        lambda tensors: {key: t * 1e30 if t.is_floating_point() else t for key, t in tensors.items()},
    )
    good = [world.ask(name, seed) for seed, name in enumerate([*NAMES, "pet"])]
    quiet = [world.engine.segment(request).labels for request in good]

    def attempt(request: SegmentRequest) -> np.ndarray | AdapterError:
        try:
            return world.engine.segment(request).labels
        except AdapterError as error:
            return error

    with ThreadPoolExecutor(8) as pool:
        *got, failed = pool.map(attempt, [*good, world.use(huge, good[0].image)])
    assert all((a == b).mean() > 0.999 for a, b in zip(quiet, got, strict=True))  # but for ties
    assert "came out as NaN" in str(failed)


UNFIT: tuple[Callable[[nn.Module], bool], ...] = (
    lambda layer: isinstance(layer, nn.ConvTranspose2d),
    lambda layer: isinstance(layer, nn.LayerNorm | nn.BatchNorm2d),
    lambda layer: isinstance(layer, nn.Conv2d) and layer.groups > 1,
    lambda layer: isinstance(layer, nn.Conv2d) and layer.dilation != (1, 1),
)


def pair(path: str, shape: Sequence[int]) -> Tensors:
    """A LoRA pair for a layer whose weight has that shape, as far as one can be made."""
    inner = shape[1:] or shape
    return {
        f"{PREFIX}{path}.lora_A.weight": torch.ones(4, *inner),
        f"{PREFIX}{path}.lora_B.weight": torch.ones(shape[0], 4, *[1] * (len(inner) - 1)),
    }


def test_what_does_not_fit_the_base_is_refused_by_name(world: World, tmp_path: Path) -> None:
    sound, head = world.write(tmp_path / "sound"), world.kind.head
    tensors = load_file(sound / "adapter_model.safetensors")
    layers = list(load_segmenter(world.base.path).named_modules())
    one_of_each = {
        i: (path, layer) for path, layer in layers for i, unfit in enumerate(UNFIT) if unfit(layer)
    }
    rules = renames("model", [path for path, _ in layers])
    bad = {
        f"'model.{current_name(path, rules)}'": tensors | pair(path, layer.weight.shape)
        for path, layer in one_of_each.values()
    }
    bad["no layer 'model.nowhere.query'"] = tensors | pair("nowhere.query", (4, 4))
    bad[f"no tensor '{head}.extra'"] = tensors | {f"{PREFIX}{head}.extra": torch.zeros(2)}
    lost = next(key for key in tensors if key.startswith(PREFIX + head))
    bad[f"lacks '{lost.removeprefix(PREFIX)}'"] = {k: t for k, t in tensors.items() if k != lost}
    for number, (problem, content) in enumerate(bad.items()):
        folder = shutil.copytree(sound, tmp_path / str(number))
        save_file(content, folder / "adapter_model.safetensors")
        with pytest.raises(AdapterMismatchError, match=re.escape(problem)):
            world.engine.segment(world.use(folder, world.ask(None).image))


@pytest.mark.parametrize("name", ["pet", "no-head", "classifier"])
def test_names_from_before_the_renames_mean_the_same(world: World, name: str, tmp_path: Path) -> None:
    old = segmenters.names_on_disk(tmp_path / "names", world.name)
    folder, labels = world.adapters[name]

    def rename(key: str) -> str:
        module, half, _ = key.removeprefix(PREFIX).partition(".lora_")
        if not half:
            return PREFIX + old[module]
        return key.replace(module, old[f"{module}.weight"].removesuffix(".weight"))

    older = changed(
        shutil.copytree(folder, tmp_path / "older"),
        lambda tensors: {rename(key): tensor for key, tensor in tensors.items()},
    )
    request = world.use(older, world.ask(None).image)
    assert torch.equal(world.engine.logits(request), world.engine.logits(world.use(folder, request.image)))
    assert labels is None or world.engine.segment(request).id2label == labels


def test_bad_requests(world: World) -> None:
    with pytest.raises(InputError, match="not RGB"):
        world.engine.segment(SegmentRequest(image=np.zeros((8, 8), np.uint8)))
    with pytest.raises(InputError, match="segments images"):
        world.engine.generate(ImageRequest(prompt="a cat", seed=1))
    adapter = LoraUse(ref=tiny.pinned(world.adapters["pet"][0]), scale=float("inf"))
    with pytest.raises(InputError, match="out of range"):
        world.engine.segment(SegmentRequest(image=world.ask(None).image, adapter=adapter))
