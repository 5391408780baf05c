from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from torch.nn import functional

from hubctl.base_models import BaseModel, locate_base
from hubctl.errors import AdapterError, AdapterMismatchError, InputError
from serve.engine.config import EngineConfig
from serve.engine.requests import ImageRequest, LoraUse, SegmentRequest
from serve.engine.segment import SegmentEngine
from tests.serve import reference, tiny, tiny_pipelines

TOLERANCE = 1e-5
PET = {0: "pet", 1: "border", 2: "background"}
FIVE = {i: f"class {i}" for i in range(5)}


@dataclass(frozen=True)
class World:
    """A tiny base, adapters for it, and an engine."""

    base: BaseModel
    engine: SegmentEngine
    adapters: dict[str, tuple[Path, dict[int, str] | None]]

    def ask(self, name: str | None, seed: int = 0) -> SegmentRequest:
        image = np.random.default_rng(seed).integers(0, 256, (40 + seed, 56, 3), dtype=np.uint8)
        adapter = LoraUse(ref=tiny.pinned(self.adapters[name][0])) if name else None
        return SegmentRequest(image=image, adapter=adapter)

    def difference(self, name: str | None, request: SegmentRequest, logits: object = None) -> float:
        got = self.engine.logits(request) if logits is None else logits
        want = reference.logits(self.base.path, request, self.adapters[name][1] if name else None)
        assert want.shape == got.shape  # type: ignore[attr-defined]
        assert want.abs().max() > 0.05
        return float((got - want).abs().max())  # type: ignore[operator]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("segment")
    base = tiny.write_segformer(folder / "base")
    write = tiny.write_segment_adapter
    adapters: dict[str, tuple[Path, dict[int, str] | None]] = {
        "pet": (write(folder / "pet", base, seed=1, labels=PET), PET),
        "five": (write(folder / "five", base, seed=2, rank=8, labels=FIVE), FIVE),
        "same-classes": (write(folder / "same-classes", base, seed=3), None),
        "no-head": (write(folder / "no-head", base, seed=4, heads=()), None),
        # A new last layer alone, and LoRA in the layers of the head that stay the base's.
        "classifier": (
            write(
                folder / "classifier",
                base,
                seed=5,
                heads=("classifier",),
                targets=("q_proj", "proj", "fc1", "linear_fuse", "sequence_reduction.sequence_reduction"),
                labels=PET,
            ),
            PET,
        ),
        "classifier-and-norm": (
            write(folder / "classifier-and-norm", base, seed=6, heads=("classifier", "batch_norm")),
            None,
        ),
    }
    located = locate_base(str(base))
    engine = SegmentEngine(located, EngineConfig(total_rows=64), tiny.fetch)
    yield World(located, engine, adapters)
    info = engine.info()
    engine.close()
    assert (info.running, info.queued) == (0, 0)
    assert all(engine._core.residency.leases(ref) == 0 for ref in info.resident)


NAMES = ["pet", "five", "same-classes", "no-head", "classifier", "classifier-and-norm", None]


@pytest.mark.parametrize("name", NAMES)
def test_one_adapter_is_what_peft_makes_of_it(world: World, name: str | None) -> None:
    assert world.difference(name, world.ask(name)) <= TOLERANCE


def test_all_of_them_in_one_forward(world: World) -> None:
    asked = [(name, world.ask(name, seed)) for seed, name in enumerate(NAMES * 2)]
    owner = world.engine.owner
    owner.forwards.clear()
    with ThreadPoolExecutor(len(asked)) as pool:
        got = list(pool.map(lambda item: world.engine.logits(item[1]), asked))
    assert max(world.difference(*item, g) for item, g in zip(asked, got, strict=True)) <= TOLERANCE
    assert owner.forwards["model"] <= len(asked) / 2


def test_labels_have_the_images_own_size(world: World) -> None:
    request = world.ask("pet", 5)
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


def test_labels_without_an_adapter_are_the_bases(world: World) -> None:
    assert world.engine.segment(world.ask(None)).id2label == {0: "thing 0", 1: "thing 1"}
    assert world.engine.segment(world.ask("no-head")).id2label == {0: "thing 0", 1: "thing 1"}


def test_classes_without_names_are_numbered(world: World, tmp_path: Path) -> None:
    folder = tiny.write_segment_adapter(tmp_path / "unnamed", world.base.path, seed=7, labels=PET)
    (folder / "hubctl.json").unlink()
    result = world.engine.segment(
        SegmentRequest(image=world.ask(None).image, adapter=LoraUse(ref=tiny.pinned(folder)))
    )
    assert result.id2label == {0: "class 0", 1: "class 1", 2: "class 2"}


def test_a_bad_adapter_disturbs_nobody(world: World, tmp_path: Path) -> None:
    broken = tiny.write_segment_adapter(tmp_path / "broken", world.base.path, seed=8)
    weights = broken / "adapter_model.safetensors"
    tensors = load_file(weights)
    tensors.pop("base_model.model.decode_head.linear_fuse.weight")
    save_file(tensors, weights)
    huge = tiny.write_segment_adapter(tmp_path / "huge", world.base.path, seed=8)
    weights = huge / "adapter_model.safetensors"
    save_file(
        {key: value * 1e30 if "lora_B" in key else value for key, value in load_file(weights).items()},
        weights,
    )
    other_base = tiny_pipelines.write_pipeline(tmp_path / "other", "sd1")
    other = tiny.write_lora(tmp_path / "lora", other_base, seed=1)

    good = [world.ask(name, 3) for name in ("pet", "no-head", None)]
    quiet = [world.engine.segment(request).labels for request in good]
    bad = [
        SegmentRequest(image=good[0].image, adapter=LoraUse(ref=tiny.pinned(folder)))
        for folder in (broken, huge, other)
    ]

    def attempt(request: SegmentRequest) -> object:
        try:
            return world.engine.segment(request).labels
        except AdapterError as error:
            return error

    with ThreadPoolExecutor(6) as pool:
        got = list(pool.map(attempt, [*good, *bad]))
    assert all((a == b).mean() > 0.999 for a, b in zip(quiet, got[:3], strict=True))
    assert "lacks 'decode_head.linear_fuse.weight'" in str(got[3])
    assert "came out as NaN" in str(got[4])
    assert isinstance(got[5], AdapterMismatchError)


def test_bad_requests(world: World) -> None:
    with pytest.raises(InputError, match="not RGB"):
        world.engine.segment(SegmentRequest(image=np.zeros((8, 8), np.uint8)))
    with pytest.raises(InputError, match="segments images"):
        world.engine.generate(ImageRequest(prompt="a cat", seed=1))
    adapter = LoraUse(ref=tiny.pinned(world.adapters["pet"][0]), scale=float("inf"))
    with pytest.raises(InputError, match="out of range"):
        world.engine.segment(SegmentRequest(image=world.ask(None).image, adapter=adapter))
