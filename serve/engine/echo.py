"""A real engine without torch: colours made from the request, for dry runs and tests of what is around it."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from hubctl.base_models import BaseModel
from hubctl.errors import InputError
from hubctl.refs import PinnedRef
from serve.engine.admission import Admission
from serve.engine.config import EngineConfig
from serve.engine.defaults import filled, stated_defaults
from serve.engine.requests import (
    Cancelled,
    EngineInfo,
    Fetch,
    ImageRequest,
    ImageResult,
    LoraUse,
    SegmentRequest,
    SegmentResult,
    Timings,
)

_SIDE_PX = 64
_RANK = 4
"""Every adapter counts as this many rows."""
_LABELS = {0: "dark", 1: "bright"}


class EchoEngine:
    """Answers at once, and the same to the same request; adapters are fetched and counted like real ones."""

    def __init__(self, base: BaseModel, config: EngineConfig, fetch: Fetch) -> None:
        self._base, self._config, self._fetch = base, config, fetch
        self._defaults = stated_defaults(base.path)
        self._admission = Admission(max_running=config.max_running, max_queued=config.max_queued)
        self._lock = threading.Lock()
        self._resident: OrderedDict[PinnedRef, None] = OrderedDict()

    def generate(self, request: ImageRequest, cancelled: Cancelled = None) -> ImageResult:
        """One colour for each image, made from prompt, seed and adapters."""
        self._refuse_other_task("text-to-image")
        request = filled(request, self._defaults, max_steps=self._config.max_steps)
        given = request.image if request.control is None else request.control.image
        height, width = given.shape[:2] if given is not None else (request.height, request.width)
        size = (height or _SIDE_PX, width or _SIDE_PX, 3)
        cost = request.num_images * (request.num_inference_steps or 1)
        with self._running(request.loras, request.timeout_s, request.tenant, cost) as started_s:
            seeds = tuple(request.seed + i for i in range(request.num_images))
            images = tuple(
                np.full(size, _colour(request.prompt, seed, request.loras), np.uint8) for seed in seeds
            )
            return ImageResult(
                images=images,
                seeds=seeds,
                num_inference_steps=request.num_inference_steps,
                guidance_scale=request.guidance_scale,
                timings=_timings(started_s),
            )

    def segment(self, request: SegmentRequest, cancelled: Cancelled = None) -> SegmentResult:
        """Bright and dark pixels; an adapter swaps the two."""
        self._refuse_other_task("image-segmentation")
        uses = (request.adapter,) if request.adapter else ()
        with self._running(uses, request.timeout_s, request.tenant) as started_s:
            labels = (request.image.mean(axis=2) >= 128).astype(np.uint8)
            labels = 1 - labels if request.adapter else labels
            return SegmentResult(
                labels=labels,
                scores={int(label): 1.0 for label in np.unique(labels)},
                id2label=dict(_LABELS),
                timings=_timings(started_s),
            )

    def info(self) -> EngineInfo:
        """The state now."""
        with self._lock:
            resident = tuple(self._resident)
        total = self._config.total_rows - 1
        return EngineInfo(
            base_id=self._base.id,
            family=self._base.family.name,
            task=self._base.family.task,
            resident=resident,
            rows_total=total,
            rows_free=total - _RANK * len(resident),
            queued=self._admission.queued,
            running=self._admission.running,
        )

    def close(self) -> None:
        """Refuse what comes."""
        self._admission.close()

    @contextmanager
    def _running(
        self, uses: Sequence[LoraUse], timeout_s: float | None, tenant: str, cost: float = 1.0
    ) -> Iterator[float]:
        started_s = time.monotonic()
        deadline_s = None if timeout_s is None else started_s + timeout_s
        for use in uses:
            self._fetch(use.ref)
        with self._admission.place(deadline_s, tenant=tenant, cost=cost):
            with self._lock:
                for use in uses:
                    self._resident[use.ref] = None
                    self._resident.move_to_end(use.ref)
                while _RANK * len(self._resident) > self._config.total_rows - 1:
                    self._resident.popitem(last=False)
            yield started_s

    def _refuse_other_task(self, task: str) -> None:
        if self._base.family.task != task:
            raise InputError(
                f"{self._base.id} does {self._base.family.task}, not {task}",
                hint="name another base or adapter",
                param="model",
            )


def _colour(prompt: str, seed: int, uses: Sequence[LoraUse]) -> tuple[int, int, int]:
    text = "\0".join([prompt, str(seed), *(f"{use.ref}*{use.scale}" for use in uses)])
    red, green, blue = hashlib.sha256(text.encode()).digest()[:3]
    return red, green, blue


def _timings(started_s: float) -> Timings:
    total_s = time.monotonic() - started_s
    return Timings(queue_s=0.0, load_s=0.0, run_s=total_s, total_s=total_s)
