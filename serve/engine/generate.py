"""Text to image: one diffusers pipeline object per request, over shared modules."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import diffusers
import numpy as np
import torch
from torch import nn

from hubctl.base_models import BaseModel
from hubctl.errors import InputError
from serve.engine.checks import check_prompts, check_request, check_steps
from serve.engine.compiled import Compiled
from serve.engine.config import EngineConfig
from serve.engine.core import Core, pick_device
from serve.engine.defaults import filled, stated_defaults
from serve.engine.pipelines import (
    arguments_of,
    call_shapes,
    load_controlnets,
    make_offload,
    make_templates,
    open_pipeline,
    own_defaults,
    shared_components,
    task_of,
    work_of,
)
from serve.engine.proxy import proxy
from serve.engine.requests import (
    Cancelled,
    EngineInfo,
    Fetch,
    ImageRequest,
    ImageResult,
    SegmentRequest,
    SegmentResult,
    Timings,
)
from serve.engine.schedulers import SCHEDULERS
from serve.engine.shared_module import SharedModule
from serve.engine.spoilt import Decoding, refuse_spoilt
from serve.engine.threads import one_core
from serve.engine.tokenizers import Tokenizers, own_tokens

_WARM_UP_STEPS = 4  # the fewest that every scheduler takes


class ImageEngine:
    """Images from one base; see `requests.Engine` for who may call what."""

    def __init__(self, base: BaseModel, config: EngineConfig, fetch: Fetch) -> None:
        """Load the base's pipeline onto its device."""
        device, dtype = pick_device(config, base.family)
        self._defaults = stated_defaults(base.path)
        start = torch.device("cpu") if config.offload else device
        with one_core():
            self._template = open_pipeline(base.path, base.family, start, dtype, config.quantize)
            controlnets = load_controlnets(config, base.family, self._template)
        self._templates = make_templates(self._template, controlnets)
        components = shared_components(self._template, base.family)
        adaptable = {name: components[name] for name in base.family.components if name in components}
        self._tokenizers = Tokenizers(self._template, adaptable, most=config.max_running)
        vocabularies = self._tokenizers.vocabularies
        self._core = Core(base, config, fetch, adaptable, device=device, vocabularies=vocabularies)
        if config.compile != "off":
            if base.family.ragged:
                raise InputError(
                    f"engine: {base.id} would be compiled anew for every length of a prompt",
                    hint="leave engine.compile out",
                )
            Compiled(
                components[base.family.denoiser],
                self._core.pool,
                config.compile,
                targets=base.family.default_targets,
                unbatched=base.family.unbatched,
            )
        self.owner = self._core.owner
        """Counts of calls and forwards, for measurements."""
        self._offload = (
            make_offload(self._template, components, controlnets, base.family, device)
            if config.offload
            else None
        )
        self._shared = {name: self._methods(name, module) for name, module in components.items()}
        self._controls = {
            name: self._methods(f"controlnet {name}", module) for name, module in controlnets.items()
        }

    def generate(self, request: ImageRequest, cancelled: Cancelled = None) -> ImageResult:
        """Make images; see `Engine.generate`."""
        template = self._template_of(request)
        request = self._filled(request, template)
        images, timings = self._run(request, template, cancelled)
        return ImageResult(
            # The rounding of diffusers' own numpy_to_pil.
            images=tuple((image * 255).round().astype(np.uint8) for image in images),
            seeds=tuple(request.seed + i for i in range(request.num_images)),
            num_inference_steps=request.num_inference_steps,
            guidance_scale=request.guidance_scale,
            timings=timings,
        )

    def warm_up(self) -> None:
        """Make images of few steps, so that the first request finds kernels chosen and memory taken.

        Raises:
            HubctlError: what a request would get, such as for black images from this base in this precision.
        """
        first = ImageRequest(prompt="", seed=0, num_inference_steps=_WARM_UP_STEPS)
        self.generate(first)
        if self._core.config.compile != "off":
            # One row is a graph of its own, and guidance makes two of it.
            for num_images in (1, min(2, self._core.config.max_images)):
                self.generate(replace(first, guidance_scale=0.0, num_images=num_images))

    def generate_floats(self, request: ImageRequest) -> np.ndarray:
        """The images before rounding: float32 (n, height, width, 3) in 0 to 1."""
        template = self._template_of(request)
        return self._run(self._filled(request, template), template)[0]

    def segment(self, request: SegmentRequest, cancelled: Cancelled = None) -> SegmentResult:
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

    def _filled(self, request: ImageRequest, template: Any) -> ImageRequest:
        core = self._core
        own = own_defaults(template, core.base.family)
        return filled(request, self._defaults, own, max_steps=core.config.max_steps)

    def _run(
        self, request: ImageRequest, template: Any, cancelled: Cancelled = None
    ) -> tuple[np.ndarray, Timings]:
        check_request(request, self._core.config, self._core.base.family, template)
        if not request.loras:  # those may bring words of their own
            with self._tokenizers.lent() as tokenizers:
                check_prompts(request, template, tokenizers)
        arguments = arguments_of(request, self._core.base.family, template)
        parts = {"scheduler": self._scheduler(request.scheduler)}
        check_steps(request, template, parts["scheduler"])
        shared = dict(self._shared)
        if request.control:
            shared["controlnet"] = self._controls[request.control.name]
        with (
            self._core.session(
                request.loras,
                request.timeout_s,
                cancelled,
                tenant=request.tenant,
                cost=work_of(request, template),
            ) as session,
            self._tokenizers.lent(own_tokens(session.adapters)) as tokenizers,
        ):
            if request.loras:
                check_prompts(request, template, tokenizers)
            # A shallow copy: processors and settings are shared, what a call changes is the copy's own.
            pipeline = copy.copy(template)
            callers = {"vae": Decoding(session.client, adapted=bool(request.loras))}
            proxies = {
                name: proxy(callers.get(name, session.client), *methods) for name, methods in shared.items()
            }
            for name, part in (parts | tokenizers | proxies).items():
                setattr(pipeline, name, part)
            # On the CPU, one per image: the same pixels on every device, and for every way of asking.
            generators = [
                torch.Generator("cpu").manual_seed(request.seed + i) for i in range(request.num_images)
            ]
            output = pipeline(**arguments, generator=generators, output_type="np")
            images: np.ndarray = output.images
            refuse_spoilt(images, getattr(output, "nsfw_content_detected", None))
            return images, session.timings()

    def _methods(self, name: str, module: nn.Module) -> tuple[SharedModule, ...]:
        base, dtype = self._core.base, next(module.parameters()).dtype
        shapes = call_shapes(name, base.family, self._core.config, dtype)
        return tuple(SharedModule(self.owner, name, module, shape, self._offload) for shape in shapes)

    def _template_of(self, request: ImageRequest) -> Any:
        base_id, task = self._core.base.id, task_of(request)
        control = request.control.name if request.control else None
        if control is not None and control not in self._controls:
            known = ", ".join(self._controls)
            raise InputError(
                f"{base_id} has no ControlNet '{control}'",
                hint=f"choose one of: {known}" if known else "leave the control out",
                param="control",
            )
        if (task, control) not in self._templates:
            raise InputError(
                f"{base_id} cannot do {task}{' with a ControlNet' if control else ''}",
                hint="leave the image out" if request.image is not None else None,
                param="image" if request.image is not None else "control",
            )
        return self._templates[task, control]

    def _scheduler(self, name: str | None) -> Any:
        own = self._template.scheduler
        if name is None:
            return copy.deepcopy(own)
        if name not in SCHEDULERS:
            raise InputError(
                f"no scheduler '{name}'", hint=f"choose one of: {', '.join(SCHEDULERS)}", param="scheduler"
            )
        class_name, changes = SCHEDULERS[name]
        # All of these belong to one kind; LCM's and TCD's are missing in the lists of the others.
        kinds = {type(own).__name__, *(c.__name__ for c in own.compatibles)}
        flows = own.config.get("prediction_type") == "flow_prediction"
        if flows or not kinds & {"DDIMScheduler", "LCMScheduler", "TCDScheduler"}:
            raise InputError(
                f"the scheduler '{name}' does not fit {self._core.base.id}",
                hint="leave the scheduler out",
                param="scheduler",
            )
        return getattr(diffusers, class_name).from_config(own.config, **changes)
