"""Adapters cut to a lower rank: what is lost is what is said, and ΔW is the nearest of that rank."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hubctl.adapter.contents import Adapter, Dialect, read_adapter
from hubctl.adapter.derive import resized
from hubctl.adapter.diff import diff
from hubctl.adapter.resize import resize
from hubctl.adapter.tensors import Tensor
from tests.adapters import contents, write_adapter
from tests.hubctl.adapter.random_lora import dense, layer, write

LAYERS = (
    layer("down_blocks.0.resnets.0.conv1", inside=(5, 3, 3), rank=6, alpha=3, seed=1, dtype="BF16"),
    layer("down_blocks.1.resnets.0.conv1", inside=(5, 1, 1), rank=8, alpha=-2, seed=2, dtype="F16"),
    layer("mid_block.attentions.0.proj_in", rank=6, alpha=12, seed=3),
    layer("encoder.layers.0.mlp.fc1", component="text_encoder", rank=5, alpha=2, seed=4, rslora=True),
    layer("encoder.layers.0.mlp.fc2", component="text_encoder", rank=2, alpha=2, seed=5, rslora=True),
)


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("dialect", ["diffusers", "peft", "kohya"])
def test_the_error_is_the_one_that_is_said(rank: int, dialect: Dialect, tmp_path: Path) -> None:
    source = write(tmp_path / "source", *LAYERS, dialect=dialect)
    made = resized(source, tmp_path / "out", rank)
    groups, total = made.groups, made.total
    before, after = read_adapter(source).layers, read_adapter(tmp_path / "out").layers
    pairs = list(zip(before, after, strict=True))
    lost = {old.where: float(np.linalg.norm(dense(new) - dense(old))) for old, new in pairs}
    norms = {old.where: np.linalg.norm(dense(old)) for old in before}
    assert total.error == pytest.approx(math.hypot(*lost.values()), rel=1e-6)
    assert total.norm == pytest.approx(math.hypot(*norms.values()), rel=1e-6)
    assert [(g.group, g.layers) for g in groups] == [
        ("text_encoder.encoder.layers.0", 2),
        ("unet.down_blocks.0", 1),
        ("unet.down_blocks.1", 1),
        ("unet.mid_block", 1),
    ]
    for old, new in pairs:
        assert new.rank == min(rank, old.rank)
        assert new.scale == pytest.approx(old.scale, rel=1e-6)
        assert (new.a.dtype, new.a.shape[1:]) == (old.a.dtype, old.a.shape[1:])
        values = np.linalg.svd(dense(old), compute_uv=False)
        best = math.sqrt((values[rank:] ** 2).sum())
        rounding = {"BF16": 1e-2, "F16": 2e-3, "F32": 1e-6}[old.a.dtype] * norms[old.where]
        assert best - 1e-6 * norms[old.where] <= lost[old.where] <= best + rounding
    assert diff(source, tmp_path / "out").change == pytest.approx(total.error, rel=1e-6)


def test_layers_that_are_low_enough_stay_bit_by_bit(tmp_path: Path) -> None:
    source = read_adapter(write(tmp_path / "source", *LAYERS))
    assert resize(source, 8) == source


def test_the_papers_come_along_and_say_so(tmp_path: Path) -> None:
    source = write_adapter(tmp_path / "source", "alice/base", rank=4)
    (source / "samples").mkdir()
    (source / "samples" / "sample-1.png").write_bytes(b"picture")
    (source / ".hidden").write_text("stays")
    resized(source, tmp_path / "out", 2)
    found = contents(tmp_path / "out")
    assert set(found) == {
        "README.md",
        "hubctl.json",
        "pytorch_lora_weights.safetensors",
        "samples/sample-1.png",
    }
    card = found["README.md"].decode()
    assert card.startswith((source / "README.md").read_text())
    assert "## Resized\n\nCut to rank 2 with hubctl" in card
    manifest = json.loads(found["hubctl.json"])
    assert manifest["base"]["id"] == "alice/base"
    assert manifest["settings"]["resized"]["rank"] == 2


def test_dora_keeps_its_magnitudes_and_says_so(tmp_path: Path) -> None:
    magnitude = layer(rank=1, inside=(1,), seed=9).b.reshaped(12)
    source = write(tmp_path / "source", layer(magnitude=magnitude))
    made = resized(source, tmp_path / "out", 2)
    assert "magnitudes are the former ones" in made.note
    (found,) = read_adapter(tmp_path / "out").layers
    assert (found.magnitude, found.rank) == (magnitude, 2)
    assert diff(source, tmp_path / "out").layers[0].magnitude_change == 0


def test_whole_numbers_become_float32_instead_of_being_rounded_away() -> None:
    def whole(shape: tuple[int, int], seed: int) -> Tensor:
        data = np.random.default_rng(seed).integers(-9, 9, shape).astype("<i4").tobytes()
        return Tensor("I32", shape, data)

    one = replace(layer(), a=whole((4, 10), 1), b=whole((12, 4), 2))
    (cut,) = resize(Adapter(dialect="diffusers", layers=(one,)), 2).layers
    assert (cut.a.dtype, cut.b.dtype) == ("F32", "F32")
    u, values, v = np.linalg.svd(dense(one), full_matrices=False)
    np.testing.assert_allclose(dense(cut), (u[:, :2] * values[:2]) @ v[:2], rtol=1e-5, atol=1e-4)
