"""Training at the images' own shapes."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hubctl.errors import InputError
from tests.serve.tiny_pipelines import write_pipeline
from tests.train import tiny
from tests.train.conftest import run
from train.buckets import bucket_sizes, nearest_bucket
from train.config import TrainConfig
from train.dataset import open_image
from train.events import Evaluated, Started, StepDone
from train.plan import batches


@pytest.mark.parametrize(
    ("size", "resolution", "expected"),
    [
        ((1000, 1000), 512, (512, 512)),
        ((1024, 512), 512, (704, 320)),
        ((600, 800), 512, (448, 576)),
        ((4000, 100), 512, (1024, 256)),
        ((300, 100), 64, (104, 32)),
        ((1, 1), 64, (64, 64)),
    ],
)
def test_a_picture_gets_the_shape_nearest_to_its_own(
    size: tuple[int, int], resolution: int, expected: tuple[int, int]
) -> None:
    assert nearest_bucket(*size, resolution) == expected


@given(st.integers(1, 5000), st.integers(1, 5000), st.sampled_from([32, 64, 512, 768, 1024]))
def test_shapes_are_of_the_squares_area_and_turn_with_the_picture(
    width: int, height: int, resolution: int
) -> None:
    chosen = nearest_bucket(width, height, resolution)
    assert chosen in bucket_sizes(resolution)
    assert all(side % 8 == 0 and resolution // 2 <= side <= 2 * resolution for side in chosen)
    assert 0.7 * resolution**2 <= chosen[0] * chosen[1] <= resolution**2
    assert nearest_bucket(height, width, resolution) == chosen[::-1]


@given(
    st.lists(st.sampled_from("abc"), min_size=1, max_size=30),
    st.integers(1, 8),
    st.integers(1, 40),
    st.integers(0, 99),
)
def test_a_batch_is_of_one_bucket_and_none_is_left_out(
    buckets: list[str], size: int, steps: int, seed: int
) -> None:
    seen = list(batches(len(buckets), size, steps, seed, buckets))
    assert [len(batch) for batch in seen] == [size] * steps
    assert all(len({buckets[index] for index in batch}) == 1 for batch in seen)
    for name in set(buckets):
        counts = Counter(index for batch in seen for index in batch if buckets[index] == name)
        members = [counts[index] for index in range(len(buckets)) if buckets[index] == name]
        assert max(members) - min(members) <= 1
    if len(set(buckets)) == 1:
        assert seen == list(batches(len(buckets), size, steps, seed))


def shaped_folder(folder: Path) -> Path:
    """Four wide pictures, three high ones and one square."""
    folder.mkdir()
    lines = []
    for number, size in enumerate([(60, 30)] * 4 + [(30, 60)] * 3 + [(40, 40)]):
        tiny.picture(number).resize(size).save(folder / f"{number}.png")
        lines.append(json.dumps({"file_name": f"{number}.png", "text": "red apple"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


@pytest.mark.parametrize("kind", ["sd1", "sdxl", "sd3", "flux"])
def test_a_family_learns_at_several_shapes(tmp_path: Path, kind: str) -> None:
    base = write_pipeline(tmp_path / "base", kind)
    trained = run(
        TrainConfig(
            task="text-to-image", base=str(base), data=shaped_folder(tmp_path / "data"), aspect_buckets=True,
            output=tmp_path / "out", steps=24, batch_size=2, rank=8, learning_rate=2e-2, resolution=64,
            sample_every=0,
        )
    )  # fmt: skip
    metrics = next(event for event in trained.events if isinstance(event, Evaluated)).metrics
    assert metrics["loss_adapter"] < 0.99 * metrics["loss_base"]
    assert sum(isinstance(event, StepDone) for event in trained.events) == 24


def test_latents_have_the_shape_of_their_bucket(tmp_path: Path) -> None:
    from tests.train.test_families import opened

    base = write_pipeline(tmp_path / "base", "sd1")
    task = opened(base, shaped_folder(tmp_path / "data"), tmp_path / "out", px=64, aspect_buckets=True)
    assert task.buckets is not None
    assert [bucket[1:] for bucket in task.buckets][::4] == [torch.Size([20, 44]), torch.Size([44, 20])]
    assert task.buckets[7][1:] == torch.Size([32, 32])
    assert len(list(task._latents.alike(8, 3))) == 4


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_a_subject_is_learnt_at_several_shapes_and_its_class_in_squares(tmp_path: Path, kind: str) -> None:
    base = write_pipeline(tmp_path / "base", kind)
    trained = run(
        TrainConfig(
            task="dreambooth", base=str(base), data=shaped_folder(tmp_path / "data"), aspect_buckets=True,
            output=tmp_path / "out", steps=24, batch_size=2, rank=8, learning_rate=2e-2, resolution=64,
            sample_every=0, instance_prompt="a tok apple", class_prompt="an apple", num_class_images=3,
            class_data=tmp_path / "class", hold_out=0.2,
        )
    )  # fmt: skip
    assert {open_image(path).size for path in (tmp_path / "class").glob("*.png")} == {(64, 64)}
    assert next(event for event in trained.events if isinstance(event, Started)).images == 6
    metrics = next(event for event in trained.events if isinstance(event, Evaluated)).metrics
    assert metrics["loss_adapter"] < 0.99 * metrics["loss_base"]
    assert metrics["class_loss_adapter"] < metrics["class_loss_base"]


def test_pictures_with_masks_have_no_buckets() -> None:
    with pytest.raises(InputError, match="--aspect-buckets is for pictures that are drawn"):
        TrainConfig(task="segmentation", base="b", data=Path("d"), output=Path("o"), aspect_buckets=True)
