"""What crosses the border of an engine: picklable, and free of torch."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from hubctl.refs import PinnedRef

if TYPE_CHECKING:
    import numpy as np

Fetch = Callable[[PinnedRef], Path]
"""Gives the verified local folder of a pinned adapter."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraUse:
    """One adapter in a request, and how strongly it acts."""

    ref: PinnedRef
    scale: float = 1.0
    """Multiplies the adapter's own alpha / rank."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Control:
    """What a ControlNet holds the images to."""

    name: str
    """A key of `EngineConfig.controlnets`."""
    image: np.ndarray
    """uint8 (height, width, 3): edges, depth, or what else the ControlNet was trained on."""
    scale: float = 1.0
    """How strongly it acts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageRequest:
    """Make images from a prompt. What is None is left to the base's own default, or its pipeline's.

    With `image` they are made from it, with `mask` too only where it says so. Whatever pictures are given
    have one size, and it is the result's.
    """

    prompt: str
    seed: int
    """Image i of the request is drawn with `seed + i`."""
    negative_prompt: str | None = None
    width: int | None = None
    """Pixels."""
    height: int | None = None
    """Pixels."""
    num_images: int = 1
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    scheduler: str | None = None
    """A name of `serve.engine.schedulers`; None keeps the base's own."""
    image: np.ndarray | None = None
    """uint8 (height, width, 3), RGB."""
    mask: np.ndarray | None = None
    """uint8 (height, width): 255 is repainted, 0 is kept."""
    strength: float | None = None
    """0 to 1: the share of the steps that is run, and so how much of `image` is lost."""
    control: Control | None = None
    loras: tuple[LoraUse, ...] = ()
    timeout_s: float | None = None
    """From the moment the engine receives the request."""
    tenant: str = field(default="", repr=False)
    """Whose request it is: tenants get equal shares while requests wait. Never logged."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Timings:
    """Where a request's time went, in seconds."""

    queue_s: float
    """Waiting for a place."""
    load_s: float
    """Waiting for its adapters."""
    run_s: float
    total_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageResult:
    """Images, in the order of their seeds."""

    images: tuple[np.ndarray, ...]
    """uint8 (height, width, 3), RGB."""
    seeds: tuple[int, ...]
    num_inference_steps: int | None
    """That were asked for, by the request or by default."""
    guidance_scale: float | None
    """Likewise."""
    timings: Timings


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentRequest:
    """Give every pixel of an image a label."""

    image: np.ndarray
    """uint8 (height, width, 3), RGB."""
    adapter: LoraUse | None = None
    timeout_s: float | None = None
    """From the moment the engine receives the request."""
    tenant: str = field(default="", repr=False)
    """As in `ImageRequest`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentResult:
    """Labels at the image's own size."""

    labels: np.ndarray
    """uint8 (height, width)."""
    scores: dict[int, float]
    """Label → mean probability over the pixels that got it; labels that no pixel got are absent."""
    id2label: dict[int, str]
    """Every label the model knows."""
    timings: Timings


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineInfo:
    """An engine's state, for `/v1/models`, routing and metrics."""

    base_id: str
    family: str
    task: str
    resident: tuple[PinnedRef, ...] = field(default=())
    """Adapters whose rows are on the device now."""
    rows_total: int
    rows_free: int
    queued: int
    """Requests that wait for a place."""
    running: int


Cancelled = threading.Event | None
"""Set when nobody waits for a request any more; it then leaves at its next step."""


class Engine(Protocol):
    """One base model. Every method may be called from any thread; `generate` and `segment` block."""

    def generate(self, request: ImageRequest, cancelled: Cancelled = None) -> ImageResult:
        """Make images.

        Raises:
            InputError: a field is out of range, or this base does not make images.
            AdapterError: an adapter is broken, or does not fit (`AdapterMismatchError`).
            OverloadedError: too many requests wait already.
            UnavailableError: the engine is closed.
            TimeoutError: the request's time is up.
            CancelledError: `cancelled` was set.
        """

    def segment(self, request: SegmentRequest, cancelled: Cancelled = None) -> SegmentResult:
        """Label an image; raises what `generate` raises."""

    def info(self) -> EngineInfo:
        """The state now; never blocks on running requests."""

    def close(self) -> None:
        """Refuse what waits, let go of the device. Calling it again does nothing."""
