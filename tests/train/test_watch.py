"""Watching for overfitting: the decisions by tables, and a training that does overfit."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hubctl.errors import InputError
from tests.train import tiny
from tests.train.conftest import Trained, run
from tests.train.test_masks import save_mask
from tests.train.test_resume import stopped_at, weights
from train.config import TrainConfig
from train.events import Evaluated, Event, Started, StepDone, Warned, Watched
from train.masks import IGNORED, read_masks
from train.prepare import prepare
from train.run import train
from train.watch import PATIENCE, Look, best_look, held_out, should_stop, smoothed


def looks(train: list[float], unseen: list[float]) -> list[Look]:
    return [
        Look(step=step, train=a, held_out=b)
        for step, (a, b) in enumerate(zip(train, unseen, strict=True), start=1)
    ]


FALLING = [1 - 0.05 * n for n in range(12)]
RISING = [1 + 0.05 * n for n in range(12)]
TURNING = [1.0, 0.9, 0.8, 0.7] + [0.7 + 0.1 * n for n in range(1, 9)]


@pytest.mark.parametrize(
    ("train", "unseen", "stop"),
    [
        (FALLING, FALLING, False),
        (FALLING, TURNING, True),
        (FALLING, RISING, True),
        (RISING, RISING, False),  # unstable, not overfitting
        (FALLING[:PATIENCE], RISING[:PATIENCE], False),  # too early to say
        (FALLING, [1.0] * 12, True),  # no better for long
    ],
)
def test_when_to_stop(train: list[float], unseen: list[float], stop: bool) -> None:
    assert should_stop(looks(train, unseen)) is stop


def test_the_best_is_the_smoothed_minimum() -> None:
    # One lucky look does not make a state the best.
    unseen = [1.0, 0.2, 1.0, 0.5, 0.4, 0.45, 0.9]
    found = looks([1.0] * 7, unseen)
    means = [look.held_out for look in smoothed(found)]
    assert means[:3] == pytest.approx([1.0, 0.6, 0.8])
    assert best_look(found) == means.index(min(means)) == 5


@given(st.lists(st.floats(0, 10), min_size=1, max_size=40))
def test_the_best_is_never_worse_than_the_last(unseen: list[float]) -> None:
    found = looks([1.0] * len(unseen), unseen)
    means = smoothed(found)
    assert means[best_look(found)].held_out <= means[-1].held_out
    assert not should_stop(found)  # the loss on training images did not fall


@given(st.integers(1, 500), st.none() | st.floats(0, 0.5), st.integers(0, 99))
def test_some_are_held_out_and_never_all(images: int, fraction: float | None, seed: int) -> None:
    chosen = held_out(images, fraction, seed)
    assert len(set(chosen)) == len(chosen) < images
    assert set(chosen) <= set(range(images))
    if fraction is None:
        assert bool(chosen) == (images >= 20)
    assert held_out(images, fraction, seed) == chosen


def contrary_masks(folder: Path, images: int) -> Path:
    """Pictures of which those that will be held out mean the opposite of what the others teach."""
    tiny.masked_folder(folder, images=images, classes=2)
    names = [item.path.name for item in read_masks(folder).train]
    for place in held_out(images, None, seed=0):
        mask = folder / "masks" / names[place]
        Image.fromarray(1 - np.asarray(Image.open(mask))).save(mask)
    return folder


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, segmentation_base: Path) -> TrainConfig:
    folder = tmp_path_factory.mktemp("watch")
    return TrainConfig(
        task="segmentation", base=str(segmentation_base), data=contrary_masks(folder / "data", 24),
        output=folder / "out", steps=300, batch_size=8, rank=8, learning_rate=5e-3, sample_every=0,
        schedule="constant",
    )  # fmt: skip


def test_what_makes_held_out_images_worse_is_stopped_and_the_best_state_kept(
    tmp_path: Path, config: TrainConfig
) -> None:
    trained = run(dataclasses.replace(config, output=tmp_path / "out"))
    started = next(event for event in trained.events if isinstance(event, Started))
    assert started.images == 22
    steps = [event for event in trained.events if isinstance(event, StepDone)]
    watched = [event for event in trained.events if isinstance(event, Watched)]
    warned = [event.message for event in trained.events if isinstance(event, Warned)]
    assert len(steps) < 300
    assert any("held-out images have got worse" in message for message in warned)
    assert watched[-1].train_loss < watched[0].train_loss
    manifest = json.loads((trained.folder / "hubctl.json").read_text())
    assert manifest["settings"]["steps"] == 300
    assert manifest["metrics"]["steps_done"] == len(steps)
    assert manifest["metrics"]["kept_step"] == max(event.step for event in watched if event.best)
    Image.open(trained.folder / "overfit.png").verify()
    assert "overfit.png" in (trained.folder / "README.md").read_text()


def test_without_auto_stop_it_goes_on_but_keeps_the_best(tmp_path: Path, config: TrainConfig) -> None:
    settings = dataclasses.replace(config, steps=60, auto_stop=False)
    whole = run(dataclasses.replace(settings, output=tmp_path / "whole"))
    watched = [event for event in whole.events if isinstance(event, Watched)]
    assert len([event for event in whole.events if isinstance(event, StepDone)]) == 60
    best = max(event.step for event in watched if event.best)
    assert best < 60
    # Looks and the best state survive a stop after it: the same bytes come out.
    halves = dataclasses.replace(settings, output=tmp_path / "halves")
    stopped_at(halves, best + 1)
    run(dataclasses.replace(halves, resume=True))
    assert weights(halves.output) == weights(whole.folder)


def test_masks_without_a_counted_pixel_count_nothing(tmp_path: Path, segmentation_base: Path) -> None:
    data = tiny.masked_folder(tmp_path / "data", images=6)
    for number in (0, *held_out(6, 0.3, 0)):
        save_mask(data / "masks" / f"{number}.png", IGNORED)
    trained = run(
        TrainConfig(
            task="segmentation", base=str(segmentation_base), data=data, output=tmp_path / "out", steps=8,
            batch_size=1, rank=2, sample_every=0, hold_out=0.3,
        )
    )  # fmt: skip
    assert not [event for event in trained.events if isinstance(event, Warned)]
    losses = [event.loss for event in trained.events if isinstance(event, StepDone)]
    assert len(losses) == 8
    assert 0 in losses
    watched = [event for event in trained.events if isinstance(event, Watched)]
    assert watched
    assert all(0 < event.held_out_loss <= 1 and 0 < event.train_loss <= 1 for event in watched)


def test_a_look_at_spoilt_weights_is_none(tmp_path: Path, style: Trained) -> None:
    config = dataclasses.replace(
        style.config, output=tmp_path / "out", steps=4, hold_out=0.5, learning_rate=1e30, sample_every=0
    )
    events: list[Event] = []
    with pytest.raises(InputError, match="training has diverged"):
        events.extend(train(config))
    assert all(math.isfinite(event.held_out_loss) for event in events if isinstance(event, Watched))


@pytest.mark.parametrize("subject", [False, True], ids=["style", "subject"])
def test_images_are_watched_for_a_denoiser_too(tmp_path: Path, diffusion_base: Path, subject: bool) -> None:
    data = tiny.captioned_folder(tmp_path / "data", images=10)
    trained = run(
        TrainConfig(
            task="dreambooth" if subject else "text-to-image", base=str(diffusion_base), data=data,
            output=tmp_path / "out", steps=6, batch_size=2, rank=2, sample_every=0, hold_out=0.2,
            instance_prompt="a tok dog" if subject else None,
        )
    )  # fmt: skip
    watched = [event for event in trained.events if isinstance(event, Watched)]
    assert [event.step for event in watched] == [5, 6]
    assert watched[0].train_loss > 0
    assert watched[0].held_out_loss > 0
    assert next(event for event in trained.events if isinstance(event, Started)).images == 8
    assert next(event for event in trained.events if isinstance(event, Evaluated)).split == "train"
    recipe = json.loads((trained.folder / "recipe.lock").read_text())
    assert recipe["data"]["images"] == 10


@pytest.mark.parametrize(("images", "kept_out"), [(19, 0), (20, 2)])
def test_of_a_subject_with_many_images_some_are_held_out(
    tmp_path: Path, diffusion_base: Path, images: int, kept_out: int
) -> None:
    config = TrainConfig(
        task="dreambooth", base=str(diffusion_base), data=tiny.captioned_folder(tmp_path / "data", images),
        output=tmp_path / "out", instance_prompt="a tok dog",
    )  # fmt: skip
    data = prepare(config, None).data
    assert len(data.watched) == kept_out
    assert {*data.train, *data.watched} == set((tmp_path / "data").glob("*.png"))
