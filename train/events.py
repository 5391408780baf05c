"""What training tells its caller: frozen events. Training itself never prints."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args


@dataclass(frozen=True, kw_only=True, slots=True)
class Preparing:
    """A slow stage begins before the first step, e.g. "loading hubctl/emoji-64"."""

    stage: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Started:
    """Everything is loaded; the steps begin."""

    task: str
    base: str
    steps: int
    images: int
    held_out_images: int
    batch_size: int
    """Images at once, of one process."""
    learning_rate: float
    resolution_px: int
    rank: int
    alpha: float
    trainable_parameters: int
    device: str
    processes: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class StepDone:
    """One optimizer step is done; `step` counts from 1."""

    step: int
    steps: int
    loss: float
    learning_rate: float
    steps_per_s: float
    eta_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampled:
    """A picture of the adapter at work was drawn.

    Until `Saved` the picture lies in a working folder beside the output.
    """

    path: Path
    step: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """So many pictures of an evaluation are done."""

    done: int
    total: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Planned:
    """What a training will take, from some real steps of it."""

    base: str
    device: str
    steps: int
    batch_size: int
    """Images at once that fit."""
    accumulation: int
    resolution_px: int
    trainable_parameters: int
    adapter_bytes: int
    peak_memory_bytes: int
    """Most memory taken: the device's, or on a CPU the whole process's."""
    memory_bytes: int
    """Memory that there is."""
    steps_per_s: float
    duration_s: float
    """Of all steps; loading, samples and judging come on top."""
    class_images_to_draw: int
    changes: tuple[str, ...]
    """Flags to give so that it fits; empty when it does as it is."""
    processes: int = 1
    """That will train; one of them was measured, alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Resumed:
    """Training goes on after `step`."""

    step: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpointed:
    """The state after `step` is on the disk: training can go on from there."""

    path: Path
    step: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Watched:
    """Training looked at the images that were held out for that."""

    step: int
    train_loss: float
    held_out_loss: float
    best: bool
    """The smoothed loss on them has never been lower: this state is kept."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stopped:
    """Training ends here because it was asked to; the last checkpoint is whole."""

    path: Path
    step: int
    steps: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluated:
    """The adapter, and its base for comparison, were measured."""

    metrics: Mapping[str, float]
    split: str
    """`test` for held-out images, `train` where none were held out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verified:
    """The saved files, loaded into a fresh base by diffusers or peft alone, answer as the trained module."""

    difference: float
    """Largest difference of the answers, relative to the largest value."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Saved:
    """The adapter folder is complete and in its place."""

    path: Path
    weights_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Warned:
    """Something the user should know, and that does not stop training."""

    message: str


Event = (
    Preparing
    | Judged
    | Started
    | Planned
    | Resumed
    | StepDone
    | Sampled
    | Checkpointed
    | Watched
    | Stopped
    | Evaluated
    | Verified
    | Saved
    | Warned
)


def event_kind(event: Event) -> str:
    """The event's name in snake case: `StepDone` is `step_done`."""
    return event_name(type(event))


def event_name(kind: type[Event]) -> str:
    """The same of a kind of event."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower()


def event_data(event: Event) -> dict[str, object]:
    """The event's fields as plain JSON values."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(event).items()}


def event_from(answer: Mapping[str, Any]) -> Event | None:
    """The event of a JSON line, `event` and its fields; None for a kind that trainings do not have."""
    kinds = {event_name(kind): kind for kind in get_args(Event)}
    kind = kinds.get(answer.get("event", ""))
    if kind is None:
        return None
    fields = {name: value for name, value in answer.items() if name != "event"}
    if "path" in fields:
        fields["path"] = Path(fields["path"])
    event: Event = kind(**fields)
    return event
