"""Text to image: one diffusers pipeline object per request, over shared modules."""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import diffusers
import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from hubctl.base_models import BaseModel
from hubctl.errors import AdapterError, InputError
from serve.engine.config import EngineConfig
from serve.engine.core import Core, check_uses, pick_device
from serve.engine.pipelines import call_shape, load_pipeline, shared_components
from serve.engine.requests import EngineInfo, Fetch, ImageRequest, ImageResult, SegmentRequest, SegmentResult
from serve.engine.schedulers import SCHEDULERS
from serve.engine.shared_module import SharedModule, proxy

_MAX_PROMPT_CHARS = 10_000


class ImageEngine:
    """Images from one base; see `requests.Engine` for who may call what."""

    def __init__(self, base: BaseModel, config: EngineConfig, fetch: Fetch) -> None:
        """Load the base's pipeline onto its device."""
        device, dtype = pick_device(config)
        self._template = load_pipeline(base.path, device, dtype)
        components = shared_components(self._template, base.family)
        adaptable = {name: components[name] for name in base.family.components if name in components}
        self._core = Core(base, config, fetch, adaptable)
        self.owner = self._core.owner
        """Counts of calls and forwards, for measurements."""
        self._shared = {
            name: SharedModule(self.owner, name, module, call_shape(name, base.family, config))
            for name, module in components.items()
        }
        self._tokenizers: deque[dict[str, Any]] = deque()

    def generate(self, request: ImageRequest) -> ImageResult:
        """Make images; see `Engine.generate`."""
        images, timings = self._run(request)
        return ImageResult(
            # The rounding of diffusers' own numpy_to_pil.
            images=tuple((image * 255).round().astype(np.uint8) for image in images),
            seeds=tuple(request.seed + i for i in range(request.num_images)),
            timings=timings,
        )

    def generate_floats(self, request: ImageRequest) -> np.ndarray:
        """The images before rounding: float32 (n, height, width, 3) in 0 to 1."""
        return self._run(request)[0]

    def segment(self, request: SegmentRequest) -> SegmentResult:
        """Refuse: this base makes images."""
        raise InputError(
            f"{self._core.base.id} makes images, it does not segment them",
            hint="name a segmentation base or adapter",
            param="model",
        )

    def info(self) -> EngineInfo:
        """The state now."""
        return self._core.info()

    def close(self) -> None:
        """End the engine."""
        self._core.close()

    def _run(self, request: ImageRequest) -> tuple[np.ndarray, Any]:
        self._check(request)
        scheduler = self._scheduler(request.scheduler)
        with (
            self._core.session(request.loras, request.timeout_s) as session,
            self._lent_tokenizers() as tokenizers,
        ):
            # A shallow copy: processors and settings are shared, what a call changes is the copy's own.
            pipeline = copy.copy(self._template)
            pipeline.scheduler = scheduler
            for name, tokenizer in tokenizers.items():
                setattr(pipeline, name, tokenizer)
            for name, shared in self._shared.items():
                setattr(pipeline, name, proxy(shared, session.client))
            given = {
                "negative_prompt": request.negative_prompt,
                "width": request.width,
                "height": request.height,
                "num_inference_steps": request.num_inference_steps,
                "guidance_scale": request.guidance_scale,
            }
            # On the CPU, one per image: the same pixels on every device, and for every way of asking.
            generators = [
                torch.Generator("cpu").manual_seed(request.seed + i) for i in range(request.num_images)
            ]
            output = pipeline(
                prompt=request.prompt,
                num_images_per_prompt=request.num_images,
                generator=generators,
                output_type="np",
                **{name: value for name, value in given.items() if value is not None},
            )
            images: np.ndarray = output.images
            if not np.isfinite(images).all():
                raise AdapterError(
                    "the image came out as NaN",
                    hint="lower the scale of the adapters" if request.loras else "try another scheduler",
                )
            return images, session.timings()

    @contextmanager
    def _lent_tokenizers(self) -> Iterator[dict[str, Any]]:
        """Tokenizers for one request alone.

        A fast tokenizer keeps the padding and truncation of the present call in itself: two threads in one
        get each other's. As many copies are made as requests ever ran at once.
        """
        try:
            lent = self._tokenizers.popleft()
        except IndexError:
            parts = self._template.components.items()
            lent = {name: copy.deepcopy(p) for name, p in parts if isinstance(p, PreTrainedTokenizerBase)}
        try:
            yield lent
        finally:
            self._tokenizers.append(lent)

    def _scheduler(self, name: str | None) -> Any:
        own = self._template.scheduler
        if name is None:
            return copy.deepcopy(own)
        if name not in SCHEDULERS:
            raise InputError(
                f"no scheduler '{name}'", hint=f"choose one of: {', '.join(SCHEDULERS)}", param="scheduler"
            )
        class_name, changes = SCHEDULERS[name]
        # All of these belong to one kind; LCM's is missing in the lists of the others.
        if not {type(own).__name__, *(c.__name__ for c in own.compatibles)} & {
            "DDIMScheduler",
            "LCMScheduler",
        }:
            raise InputError(
                f"the scheduler '{name}' does not fit {self._core.base.id}",
                hint="leave the scheduler out",
                param="scheduler",
            )
        return getattr(diffusers, class_name).from_config(own.config, **changes)

    def _check(self, request: ImageRequest) -> None:
        config = self._core.config
        check_uses(request.loras, config)
        if len(request.prompt) + len(request.negative_prompt or "") > _MAX_PROMPT_CHARS:
            raise InputError(f"the prompt is longer than {_MAX_PROMPT_CHARS:,} characters", param="prompt")
        _in_range("n", request.num_images, 1, config.max_images)
        _in_range("num_inference_steps", request.num_inference_steps, 1, config.max_steps)
        _in_range("seed", request.seed, 0, 2**63 - 1 - config.max_images)
        multiple = math.lcm(8, self._template.vae_scale_factor * self._core.base.family.patch)
        for name, side_px in (("width", request.width), ("height", request.height)):
            _in_range(name, side_px, multiple, config.max_side_px)
            if side_px is not None and side_px % multiple:
                raise InputError(f"{name} {side_px} is not a multiple of {multiple}", param=name)
        if request.guidance_scale is not None and not 0 <= request.guidance_scale <= 100:
            raise InputError(
                f"guidance_scale {request.guidance_scale} is out of range",
                hint="give 0 to 100",
                param="guidance_scale",
            )


def _in_range(name: str, value: int | None, low: int, high: int) -> None:
    if value is not None and not low <= value <= high:
        raise InputError(f"{name} {value} is out of range", hint=f"give {low} to {high}", param=name)
