"""What a training tells TensorBoard, as TensorBoard's own reader finds it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from hubctl.errors import InputError
from tests.train.conftest import Trained, run
from train.config import TrainConfig
from train.events import StepDone
from train.track import require_trackers


def test_losses_and_samples_reach_tensorboard(tmp_path: Path, style: Trained) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trained = run(dataclasses.replace(style.config, output=tmp_path / "out", track=("tensorboard",)))
    told: Any = EventAccumulator(str(tmp_path / "runs" / "out"), size_guidance={"images": 0, "scalars": 0})
    told.Reload()
    steps = [event for event in trained.events if isinstance(event, StepDone)]
    assert [(point.step, point.value) for point in told.Scalars("loss")] == [
        (event.step, pytest.approx(event.loss)) for event in steps
    ]
    assert told.Scalars("train/loss_adapter")[-1].step == 3
    assert [picture.step for picture in told.Images("samples")] == [0, 2, 3]
    # Telling it changes nothing: the file is what it is without.
    name = "pytorch_lora_weights.safetensors"
    assert (trained.folder / name).read_bytes() == (style.folder / name).read_bytes()


def test_what_is_not_installed_is_named_before_anything_is_loaded() -> None:
    with pytest.raises(InputError, match="--track comet needs comet") as caught:
        require_trackers(("comet",))
    assert caught.value.hint == "pip install comet"
    with pytest.raises(InputError, match="--track is 'comet'"):
        TrainConfig(task="text-to-image", base="b", data=Path("d"), output=Path("o"), track=("comet",))  # type: ignore[arg-type]
