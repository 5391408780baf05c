"""A training's events to experiment trackers, by the trackers of accelerate."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any

from hubctl.errors import InputError
from train.config import TrainConfig
from train.events import Evaluated, Event, Sampled, Started, StepDone, Watched

if TYPE_CHECKING:
    from collections.abc import Generator

RUNS = "runs"
"""Folder beside the output where TensorBoard's files go; one for all trainings there, to compare them."""


def require_trackers(names: tuple[str, ...]) -> None:
    """Raise `InputError` for a tracker whose library is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise InputError(f"--track {name} needs {name}", hint=f"pip install {name}")


def tracked(events: Generator[Event, None, None], config: TrainConfig) -> Iterator[Event]:
    """Pass the events on, and tell each tracker of `config.track` on the way."""
    trackers: list[Any] = []
    step = 0
    try:
        with closing(events):
            for event in events:
                if isinstance(event, Started) and config.track:
                    trackers = _started(config, event)
                if isinstance(event, StepDone):
                    step = event.step
                for tracker in trackers:
                    _tell(tracker, event, step)
                yield event
    finally:
        for tracker in trackers:
            tracker.finish()


def figures(event: Event) -> dict[str, float]:
    """The numbers of an event, by the names that curves get."""
    match event:
        case StepDone():
            return {
                "loss": event.loss,
                "learning_rate": event.learning_rate,
                "steps_per_s": event.steps_per_s,
            }
        case Watched():
            return {"watch/train_loss": event.train_loss, "watch/held_out_loss": event.held_out_loss}
        case Evaluated():
            return {f"{event.split}/{name}": value for name, value in event.metrics.items()}
    return {}


def _started(config: TrainConfig, event: Started) -> list[Any]:
    from accelerate.state import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    PartialState()
    trackers = []
    for name in config.track:
        kind = LOGGER_TYPE_TO_CLASS[name]
        folder = [str(config.output.absolute().parent / RUNS)] if kind.requires_logging_directory else []
        run = config.output.resolve().name
        tracker = kind(run, *folder)
        tracker.start()
        trackers.append(tracker)
        if name != "tensorboard":  # whose table of settings is a run of its own, and clutters the list
            tracker.store_init_configuration(
                {"task": event.task, "base": event.base, "rank": event.rank, "alpha": event.alpha,
                 "learning_rate": event.learning_rate, "batch_size": event.batch_size, "steps": event.steps}
            )  # fmt: skip
    return trackers


def _tell(tracker: Any, event: Event, step: int) -> None:
    if found := figures(event):
        tracker.log(found, step=step)
    if isinstance(event, Sampled) and hasattr(tracker, "log_images"):
        import numpy as np
        from PIL import Image

        with Image.open(event.path) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
        tracker.log_images({"samples": pixels[None]}, step=step, **layout)
