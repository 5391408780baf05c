"""Which requests an image engine takes: every field is looked at before anything runs."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from transformers import CLIPTokenizer

from hubctl.errors import InputError
from hubctl.families import Family
from serve.engine.config import EngineConfig
from serve.engine.core import check_uses
from serve.engine.pipelines import size_of
from serve.engine.requests import ImageRequest

_MAX_PROMPT_CHARS = 10_000
_MAX_CONTROL_SCALE = 10
_RGB = ("height", "width", 3)


def check_request(request: ImageRequest, config: EngineConfig, family: Family, pipeline: Any) -> None:
    """Look at every field that `pipeline` will be called with.

    Raises:
        InputError: one is out of range, or does not go with the others; `param` names it.
    """
    check_uses(request.loras, config)
    if len(request.prompt) + len(request.negative_prompt or "") > _MAX_PROMPT_CHARS:
        raise InputError(f"the prompt is longer than {_MAX_PROMPT_CHARS:,} characters", param="prompt")
    for name, text in _prompts(request):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            letter = text[error.start].encode("unicode_escape").decode()
            raise InputError(f"the {_words(name)} holds {letter}, half of a character", param=name) from error
    _in_range("n", request.num_images, 1, config.max_images)
    _in_range("num_inference_steps", request.num_inference_steps, 1, config.max_steps)
    _in_range("seed", request.seed, 0, 2**63 - 1 - config.max_images)
    _in_range("guidance_scale", request.guidance_scale, 0, 100)
    _check_pictures(request, family)
    token_px = pipeline.vae_scale_factor * family.patch
    multiple = math.lcm(8, token_px)
    most_px = min(config.max_side_px, _positions(getattr(pipeline, family.denoiser)) * token_px)
    for name, side_px in zip(("height", "width"), size_of(request), strict=True):
        _in_range(name, side_px, multiple, most_px)
        if side_px is not None and side_px % multiple:
            raise InputError(f"{name} {side_px} is not a multiple of {multiple}", param=name)
    _check_strength(request, pipeline)


def check_prompts(request: ImageRequest, pipeline: Any, tokenizers: Mapping[str, Any]) -> None:
    """Count what diffusers would cut off without a word; `tokenizers` are this call's alone.

    Raises:
        InputError: a prompt has more tokens than the one of the pipeline's tokenizers that takes most.
    """
    takes = inspect.signature(pipeline.__call__).parameters
    sequence = takes["max_sequence_length"].default if "max_sequence_length" in takes else None
    limits = {
        name: tokenizer.model_max_length if isinstance(tokenizer, CLIPTokenizer) or not sequence else sequence
        for name, tokenizer in tokenizers.items()
    }
    longest = max(limits, key=limits.__getitem__)
    for name, text in _prompts(request):
        tokens = _count(tokenizers[longest], text)
        if tokens > limits[longest]:
            raise InputError(
                f"the {_words(name)} has {tokens} tokens, this base reads {limits[longest]}",
                hint=f"leave out at least {tokens - limits[longest]} of them; most words are one or two",
                param=name,
            )


def check_steps(request: ImageRequest, pipeline: Any, scheduler: Any) -> None:
    """Let the request's own scheduler lay out its timesteps, as the pipeline will once more.

    Raises:
        InputError: it cannot do so many, or so few.
    """
    if scheduler.config.get("prediction_type") in (None, "flow_prediction"):
        return  # flows take any number; and some only with a shift, which their pipelines work out
    steps, trained = _steps(request, pipeline), scheduler.config.num_train_timesteps
    try:
        scheduler.set_timesteps(steps)
        fit = steps <= trained and float(scheduler.timesteps.max()) < trained
    except (ValueError, IndexError):  # LCM above 50 steps, PNDM below 4, any above `trained`
        fit = False
    if not fit:
        raise InputError(
            f"{type(scheduler).__name__} cannot do {steps} steps",
            hint="give another number of steps, or another scheduler",
            param="num_inference_steps",
        )


def _positions(denoiser: Any) -> int:
    """Tokens on a side for which the denoiser has positions: SD3 and Z-Image keep tables of them."""
    tables = denoiser.config.get("axes_lens", ())[1:]  # the first is the prompt's
    return min((denoiser.config.get("pos_embed_max_size") or sys.maxsize, *tables))


def _steps(request: ImageRequest, pipeline: Any) -> int:
    default = inspect.signature(pipeline.__call__).parameters["num_inference_steps"].default
    return int(request.num_inference_steps or default)


def _prompts(request: ImageRequest) -> tuple[tuple[str, str], ...]:
    return ("prompt", request.prompt), ("negative_prompt", request.negative_prompt or "")


def _words(name: str) -> str:
    return name.replace("_", " ")


def _count(tokenizer: Any, text: str) -> int:
    """Tokens of a prompt, with the marks of a chat around it where a language model reads it."""
    if tokenizer.chat_template:
        turn = [{"role": "user", "content": text}]
        text = tokenizer.apply_chat_template(
            turn, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
    return len(tokenizer(text).input_ids)


def _check_pictures(request: ImageRequest, family: Family) -> None:
    if request.mask is not None and request.image is None:
        raise InputError("a mask was given without an image", hint="send the image too", param="mask")
    control = request.control.image if request.control else None
    pictures = {"image": request.image, "control": control, "mask": request.mask}
    for name, picture in pictures.items():
        if picture is not None:
            _check_pixels(name, picture, wanted=("height", "width") if name == "mask" else _RGB)
    if request.image is not None:
        _check_shape(request.image, family)
    height, width = size_of(request)
    for name, picture in pictures.items():
        if picture is not None and picture.shape[:2] != (height, width):
            raise InputError(
                f"{name} has {picture.shape[1]}x{picture.shape[0]} pixels, the image {width}x{height}",
                param=name,
            )
    for name, asked, given in (("height", request.height, height), ("width", request.width, width)):
        if asked not in (None, given):
            raise InputError(
                f"{name} is {asked}, the image's {given}",
                hint=f"leave {name} out, or resize the image",
                param=name,
            )
    if request.control:
        _in_range("control.scale", request.control.scale, 0, _MAX_CONTROL_SCALE)


def _check_pixels(name: str, picture: np.ndarray, wanted: tuple[object, ...]) -> None:
    shape = tuple(picture.shape)
    if picture.dtype != np.uint8 or len(shape) != len(wanted) or shape[2:] != wanted[2:]:
        raise InputError(
            f"{name} is {picture.dtype} {shape}, not uint8 ({', '.join(map(str, wanted))})", param=name
        )


def _check_shape(image: np.ndarray, family: Family) -> None:
    height, width = image.shape[:2]
    if min(height, width) < family.min_image_px:
        raise InputError(
            f"the image has {width}x{height} pixels, {family.name} takes none below {family.min_image_px}",
            hint="send a larger one",
            param="image",
        )
    if max(height, width) > family.max_image_aspect * min(height, width):
        raise InputError(
            f"the image has {width}x{height} pixels; {family.name} takes sides up to "
            f"{family.max_image_aspect:g} to 1",
            hint="cut it",
            param="image",
        )


def _check_strength(request: ImageRequest, pipeline: Any) -> None:
    _in_range("strength", request.strength, 0, 1)
    if request.image is None:
        if request.strength is not None:
            raise InputError(
                "strength was given without an image", hint="send the image too", param="strength"
            )
        return
    defaults = inspect.signature(pipeline.__call__).parameters
    if "strength" not in defaults:
        return
    strength = defaults["strength"].default if request.strength is None else request.strength
    steps = _steps(request, pipeline)
    if strength * steps < 1:
        raise InputError(
            f"strength {strength:g} of {steps} steps is less than one step",
            hint="give more of either",
            param="strength",
        )


def _in_range(name: str, value: float | None, low: float, high: float) -> None:
    if value is not None and not low <= value <= high:  # also catches NaN
        raise InputError(f"{name} {value} is out of range", hint=f"give {low} to {high}", param=name)
