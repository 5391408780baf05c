"""The pipelines of one base: how they are loaded, which modules they share, what each is called with."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import diffusers
import torch
from PIL import Image

from hubctl.errors import InputError
from hubctl.families import Family
from hubctl.modeling.pipelines import load_pipeline
from hubctl.modeling.quantize import quantize
from serve.engine.config import EngineConfig, Quantize
from serve.engine.defaults import Defaults
from serve.engine.offload import Offload
from serve.engine.requests import ImageRequest
from serve.engine.shared_module import CallShape

_TASKS = {
    "text to image": diffusers.AutoPipelineForText2Image,
    "image to image": diffusers.AutoPipelineForImage2Image,
    "inpainting": diffusers.AutoPipelineForInpainting,
}
Templates = dict[tuple[str, str | None], Any]
"""Pipeline by task and name of the ControlNet: those that diffusers has for the base."""


def open_pipeline(
    folder: Path, family: Family, device: torch.device, dtype: torch.dtype, weights: Quantize = "none"
) -> Any:
    """The base's own pipeline on its device, its denoiser quantised."""
    pipeline = load_pipeline(folder, dtype)
    quantize(getattr(pipeline, family.denoiser), weights)  # before the device has to hold all of it
    pipeline.to(device)
    if hasattr(pipeline, "upcast_vae") and pipeline.vae.config.get("force_upcast"):
        # SDXL's own overflows in float16. Its pipelines change the dtype back and forth, which a shared
        # module cannot have.
        pipeline.vae.float()
    return pipeline


def load_controlnets(config: EngineConfig, family: Family, pipeline: Any) -> dict[str, torch.nn.Module]:
    """The ControlNets that the operator named, beside the pipeline's denoiser.

    Raises:
        InputError: one is not there, or is for another kind of base.
    """
    denoiser = getattr(pipeline, family.denoiser)
    found = {}
    for name, folder in config.controlnets.items():
        where = f"engine: controlnets.{name}: {folder}"
        try:
            kind = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))["_class_name"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{where} is no ControlNet's folder") from error
        if kind != family.controlnet:
            fitting = family.controlnet or "none"
            raise InputError(f"{where} holds a {kind}; a {family.name} base takes {fitting}")
        module = getattr(diffusers, kind).from_pretrained(folder, dtype=denoiser.dtype, local_files_only=True)
        for width in ("cross_attention_dim", "joint_attention_dim"):
            if module.config.get(width) != denoiser.config.get(width):
                raise InputError(f"{where} has another {width} than the base")
        found[name] = module.to(denoiser.device).eval()
    return found


def make_templates(pipeline: Any, controlnets: Mapping[str, torch.nn.Module]) -> Templates:
    """The pipeline and its siblings, over the same components."""
    templates: Templates = {("text to image", None): pipeline}
    for task, auto in _TASKS.items():
        for name, controlnet in ((None, None), *controlnets.items()):
            given = {"controlnet": controlnet} if name else {}
            if (task, name) not in templates:
                with suppress(ValueError):  # how diffusers says that it has none
                    templates[task, name] = auto.from_pipe(pipeline, **given)
    for template in templates.values():
        template.set_progress_bar_config(disable=True)
    return templates


def shared_components(pipeline: Any, family: Family) -> dict[str, torch.nn.Module]:
    """The heavy modules: text encoders, denoiser and VAE, by name."""
    return {
        name: module.eval()
        for name, module in pipeline.components.items()
        if isinstance(module, torch.nn.Module)
        and (name.startswith("text_encoder") or name in (family.denoiser, "vae"))
    }


def make_offload(
    pipeline: Any,
    components: Mapping[str, torch.nn.Module],
    controlnets: Mapping[str, torch.nn.Module],
    family: Family,
    device: torch.device,
) -> Offload:
    """Keep `components` in host memory; what else the pipeline calls (a safety checker) goes to `device`."""
    denoiser = components[family.denoiser]
    groups = [[module] for module in components.values() if module is not denoiser]
    for name, module in pipeline.components.items():
        if isinstance(module, torch.nn.Module) and name not in components:
            module.to(device)
    return Offload([[denoiser, *controlnets.values()], *groups], device)


def call_shapes(name: str, family: Family, config: EngineConfig, dtype: torch.dtype) -> tuple[CallShape, ...]:
    """How the methods of the component `name` are called."""
    unbatched = frozenset(family.unbatched)
    if name == "vae":
        rows = config.max_decode_rows
        ignored = frozenset({"generator"})  # taken for the sake of video decoders; image decoders are exact
        return (
            CallShape(method="decode", stage=2, max_rows=rows, ignored=ignored, dtype=dtype),
            CallShape(method="encode", stage=0, max_rows=rows, dtype=dtype),
        )
    if name == family.denoiser:
        listed = frozenset(family.listed)
        most = config.max_batch_rows
        return (CallShape(stage=1, max_rows=most, unbatched=unbatched, listed=listed, loops=True),)
    # A ControlNet too comes before the denoiser, in every step anew.
    return (CallShape(stage=0, max_rows=config.max_batch_rows, unbatched=unbatched),)


def own_defaults(pipeline: Any, family: Family) -> Defaults:
    """What the pipeline itself takes where its caller says nothing."""
    takes = inspect.signature(pipeline.__call__).parameters
    return Defaults(
        num_inference_steps=takes["num_inference_steps"].default,
        guidance_scale=takes[family.guidance].default,
    )


def task_of(request: ImageRequest) -> str:
    """Which kind of pipeline the request needs."""
    if request.image is None:
        return "text to image"
    return "image to image" if request.mask is None else "inpainting"


def size_of(request: ImageRequest) -> tuple[int | None, int | None]:
    """Height and width of the result; None where the pipeline decides."""
    control = request.control.image if request.control else None
    given = control if request.image is None else request.image
    return (request.height, request.width) if given is None else (given.shape[0], given.shape[1])


def work_of(request: ImageRequest, pipeline: Any) -> float:
    """Images times steps: what a request takes of the denoiser, in steps of one image."""
    default = inspect.signature(pipeline.__call__).parameters["num_inference_steps"].default
    return float(request.num_images * (request.num_inference_steps or default))


def arguments_of(request: ImageRequest, family: Family, pipeline: Any) -> dict[str, Any]:
    """What the pipeline is called with: what the request says, the rest is left to the pipeline."""
    height, width = size_of(request)
    arguments: dict[str, Any] = {
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "height": height,
        "width": width,
        "num_images_per_prompt": request.num_images,
        "num_inference_steps": request.num_inference_steps,
        family.guidance: request.guidance_scale,
        "strength": request.strength,
    }
    takes = inspect.signature(pipeline.__call__).parameters
    if request.control:
        # Text to image with a ControlNet calls its one picture `image` in the older pipelines.
        name = "control_image" if "control_image" in takes else "image"
        arguments[name] = Image.fromarray(request.control.image)
        arguments["controlnet_conditioning_scale"] = request.control.scale
    if request.image is not None:
        image = Image.fromarray(request.image)
        # One for each generator: pipelines that get a single one draw its latents for all images at once.
        arguments["image"] = [image] * request.num_images if "strength" in takes else image
        if "width" not in takes:  # such a pipeline keeps the image's size anyway
            del arguments["width"], arguments["height"]
    if request.mask is not None:
        arguments["mask_image"] = Image.fromarray(request.mask)
    arguments = {name: value for name, value in arguments.items() if value is not None}
    for name in arguments:
        if name not in takes:
            raise InputError(f"{type(pipeline).__name__} takes no {name}", param=name)
    return arguments
