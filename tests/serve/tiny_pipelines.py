"""Tiny random pipelines of every family, built from configurations and saved as diffusers saves them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    ControlNetModel,
    DDIMScheduler,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxControlNetModel,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)

from tests.serve import tiny_language
from tests.serve import tiny_parts as parts


def write_pipeline(folder: Path, kind: str) -> Path:
    """A pipeline of `PIPELINES` for 32 px images, in some hundred kilobytes."""
    torch.manual_seed(0)
    PIPELINES[kind]().save_pretrained(folder)
    return folder


def write_controlnet(folder: Path, base: Path) -> Path:
    """A ControlNet for `base` that does something: the zeros that training starts from are filled."""
    torch.manual_seed(1)
    pipeline: Any = DiffusionPipeline.from_pretrained(base)
    model = _CONTROLNETS[type(pipeline).__name__](pipeline)
    for parameter in model.parameters():
        if not parameter.any():
            parameter.data = torch.randn(parameter.shape) * 0.1
    model.save_pretrained(folder)
    return folder


def _unet(**settings: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=2,
        **settings,
    )


def _ddim() -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        clip_sample=False,
        set_alpha_to_one=False,
    )


def _sd1() -> StableDiffusionPipeline:
    return StableDiffusionPipeline(
        unet=_unet(cross_attention_dim=32),
        vae=parts.autoencoder(),
        text_encoder=parts.clip_text_encoder(),
        tokenizer=parts.clip_tokenizer(),
        scheduler=_ddim(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sdxl() -> StableDiffusionXLPipeline:
    return StableDiffusionXLPipeline(
        unet=_unet(
            cross_attention_dim=56,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=24 + 6 * 8,
        ),
        vae=parts.autoencoder(),
        text_encoder=parts.clip_text_encoder(),
        text_encoder_2=parts.clip_text_encoder(24, projection=True),
        tokenizer=parts.clip_tokenizer(),
        tokenizer_2=parts.clip_tokenizer(),
        scheduler=_ddim(),
        add_watermarker=False,
    )


def _sd3(*, t5: bool = True) -> StableDiffusion3Pipeline:
    return StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=16,
            patch_size=2,
            in_channels=16,
            out_channels=16,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=32,
            caption_projection_dim=32,
            pooled_projection_dim=32,
            pos_embed_max_size=32,
            dual_attention_layers=(0,),
            qk_norm="rms_norm",
        ),
        vae=parts.autoencoder(16, scaling_factor=1.5, shift_factor=0.06),
        text_encoder=parts.clip_text_encoder(16, projection=True),
        text_encoder_2=parts.clip_text_encoder(16, projection=True),
        text_encoder_3=parts.t5_text_encoder() if t5 else None,
        tokenizer=parts.clip_tokenizer(),
        tokenizer_2=parts.clip_tokenizer(),
        tokenizer_3=parts.t5_tokenizer() if t5 else None,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def _flux() -> FluxPipeline:
    return FluxPipeline(
        transformer=FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            axes_dims_rope=(4, 4, 8),
            guidance_embeds=True,
        ),
        vae=parts.autoencoder(4, scaling_factor=0.36, shift_factor=0.12),
        text_encoder=parts.clip_text_encoder(),
        text_encoder_2=parts.t5_text_encoder(),
        tokenizer=parts.clip_tokenizer(),
        tokenizer_2=parts.t5_tokenizer(),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    )


def _control_unet(pipeline: Any) -> ControlNetModel:
    # Its picture is halved once, as the autoencoder does.
    return ControlNetModel.from_unet(pipeline.unet, conditioning_embedding_out_channels=(8, 16))


def _control_flux(pipeline: Any) -> FluxControlNetModel:
    return FluxControlNetModel.from_transformer(
        pipeline.transformer, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2
    )


_CONTROLNETS: dict[str, Callable[[Any], Any]] = {
    "StableDiffusionPipeline": _control_unet,
    "StableDiffusionXLPipeline": _control_unet,
    "FluxPipeline": _control_flux,
}
PIPELINES: dict[str, Callable[[], DiffusionPipeline]] = {
    "sd1": _sd1,
    "sdxl": _sdxl,
    "sd3": _sd3,
    "sd3-without-t5": lambda: _sd3(t5=False),
    "flux": _flux,
    "flux2-klein": tiny_language.flux2_klein,
    "qwen-image": tiny_language.qwen_image,
    "z-image": tiny_language.z_image,
    "sana": tiny_language.sana,
}
"""Builders by family, and what is special about them."""
