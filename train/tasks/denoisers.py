"""Families of denoisers: how prompts become their conditions, and how they are asked; a row for each.

Shapes: B images, C latent channels, H x W latent pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from train.tasks.noise import DiffusionNoise, FlowNoise, Noise

Conditions = dict[str, torch.Tensor]
"""What prompts become, each [N, ...], under the names that the family's pipeline takes them by."""

Encode = Callable[[Any, Sequence[str], torch.device], Conditions]
"""Pipeline, prompts and device to conditions, by the pipeline's own encoding."""

Predict = Callable[[nn.Module, Any, torch.Tensor, torch.Tensor, Conditions], torch.Tensor]
"""Module (as the loop wrapped it), pipeline, noisy latents, timesteps and conditions to [B, C, H, W]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Denoiser:
    """How to train one family."""

    encode: Encode
    predict: Predict
    noise: Callable[[Any, str], Noise]
    large_encoders: tuple[str, ...] = ()
    """Text encoders too large for float32: they are loaded in the denoiser's own precision."""
    guidance: float = 5.0
    """Strength of guidance in samples."""
    negative: bool = True
    """The pipeline takes conditions to guide away from."""


def no_text(encode: Encode, pipeline: Any, device: torch.device) -> Conditions:
    """Conditions of no prompt, as the pipeline itself makes them for guidance: zeros for most of SDXL."""
    conditions = encode(pipeline, [""], device)
    if getattr(pipeline.config, "force_zeros_for_empty_prompt", False):
        return {name: torch.zeros_like(value) for name, value in conditions.items()}
    return conditions


# -- conditions ----------------------------------------------------------------------------------


def take(conditions: Conditions, indices: Sequence[int]) -> Conditions:
    """The conditions of some prompts; one prompt alone serves for all of them."""
    return {
        name: value[list(indices)] if len(value) > 1 else value.expand(len(indices), *value.shape[1:])
        for name, value in conditions.items()
    }


def join(parts: Sequence[Conditions]) -> Conditions:
    """All of them, one after the other."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def replace_where(chosen: torch.Tensor, conditions: Conditions, other: Conditions) -> Conditions:
    """`conditions`, but `other` (of one prompt) for the rows `chosen`, a bool tensor [B]."""
    return {
        name: torch.where(
            chosen.to(value.device).view(-1, *[1] * (value.dim() - 1)), other[name], value
        )
        for name, value in conditions.items()
    }  # fmt: skip


def _named(names: Mapping[str, int], **settings: Any) -> Encode:
    """An encoding by the pipeline's `encode_prompt`, whose answers are taken by their places."""

    def encode(pipeline: Any, prompts: Sequence[str], device: torch.device) -> Conditions:
        answers = pipeline.encode_prompt(prompt=list(prompts), device=device, **settings)
        return {name: answers[place] for name, place in names.items()}

    return encode


# -- asking --------------------------------------------------------------------------------------


def _sd(
    module: nn.Module, pipeline: Any, noisy: torch.Tensor, timesteps: torch.Tensor, conditions: Conditions
) -> torch.Tensor:
    answer: torch.Tensor = module(noisy, timesteps, conditions["prompt_embeds"], return_dict=False)[0]
    return answer


def _sdxl(
    module: nn.Module, pipeline: Any, noisy: torch.Tensor, timesteps: torch.Tensor, conditions: Conditions
) -> torch.Tensor:
    height, width = (side * pipeline.vae_scale_factor for side in noisy.shape[-2:])
    # Original size, corner of the crop, size: as the pipeline's defaults have them.
    sizes = torch.tensor([height, width, 0, 0, height, width], device=noisy.device, dtype=noisy.dtype)
    added = {"text_embeds": conditions["pooled_prompt_embeds"], "time_ids": sizes.expand(len(noisy), -1)}
    answer: torch.Tensor = module(
        noisy, timesteps, conditions["prompt_embeds"], added_cond_kwargs=added, return_dict=False
    )[0]
    return answer


def _sd3(
    module: nn.Module, pipeline: Any, noisy: torch.Tensor, timesteps: torch.Tensor, conditions: Conditions
) -> torch.Tensor:
    answer: torch.Tensor = module(
        hidden_states=noisy,
        timestep=timesteps,
        encoder_hidden_states=conditions["prompt_embeds"],
        pooled_projections=conditions["pooled_prompt_embeds"],
        return_dict=False,
    )[0]
    return answer


def _flux(
    module: nn.Module, pipeline: Any, noisy: torch.Tensor, timesteps: torch.Tensor, conditions: Conditions
) -> torch.Tensor:
    size, channels, height, width = noisy.shape
    text = conditions["prompt_embeds"]
    # A distilled model takes its guidance as an input; 1 is what plain training data shows it.
    guided = pipeline.transformer.config.guidance_embeds
    answer = module(
        hidden_states=pipeline._pack_latents(noisy, size, channels, height, width),
        # The pipeline gives parts of one; the model multiplies by 1000 again.
        timestep=timesteps / 1000,
        guidance=torch.ones(size, device=noisy.device) if guided else None,
        pooled_projections=conditions["pooled_prompt_embeds"],
        encoder_hidden_states=text,
        txt_ids=torch.zeros(text.shape[1], 3, device=noisy.device, dtype=noisy.dtype),
        img_ids=pipeline._prepare_latent_image_ids(size, height // 2, width // 2, noisy.device, noisy.dtype),
        return_dict=False,
    )[0]
    side = pipeline.vae_scale_factor
    unpacked: torch.Tensor = pipeline._unpack_latents(answer, height * side, width * side, side)
    return unpacked


_ONE = {"num_images_per_prompt": 1}
_PLAIN = {"num_images_per_prompt": 1, "do_classifier_free_guidance": False}
_POOLED = {"prompt_embeds": 0, "pooled_prompt_embeds": 2}
_STABLE_DIFFUSION = Denoiser(encode=_named({"prompt_embeds": 0}, **_PLAIN), predict=_sd, noise=DiffusionNoise)

DENOISERS = {
    "sd1": _STABLE_DIFFUSION,
    "sd2": _STABLE_DIFFUSION,
    "sdxl": Denoiser(encode=_named(_POOLED, **_PLAIN), predict=_sdxl, noise=DiffusionNoise),
    "sd3": Denoiser(
        encode=_named(_POOLED, prompt_2=None, prompt_3=None, **_PLAIN),
        predict=_sd3,
        noise=FlowNoise,
        large_encoders=("text_encoder_3",),
    ),
    "flux": Denoiser(
        encode=_named({"prompt_embeds": 0, "pooled_prompt_embeds": 1}, prompt_2=None, **_ONE),
        predict=_flux,
        noise=FlowNoise,
        large_encoders=("text_encoder_2",),
        guidance=3.5,
        negative=False,
    ),
}
"""By family; the names are `train.prepare.TRAINABLE_DENOISERS`, which must be known without torch."""
