"""A Stable Diffusion 1.5 of random weights: the real one's shapes, where its weights are not at hand."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from hubctl.base_models import embedded_bases

CLIP_TOKENS = 77


def write_sd15(folder: Path) -> Path:
    """Write the pipeline in float16, 2 GB; its words are those of emoji-64.

    Shapes: `config.json` of each component of stable-diffusion-v1-5/stable-diffusion-v1-5.
    """
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(embedded_bases()["emoji-64"] / "tokenizer")
    tokenizer.model_max_length = CLIP_TOKENS
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=4,
            sample_size=512,
        ),
        text_encoder=CLIPTextModel(
            CLIPTextConfig(
                vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
                num_attention_heads=12, max_position_embeddings=CLIP_TOKENS, projection_dim=768,
            )
        ),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(
            sample_size=64,
            block_out_channels=(320, 640, 1280, 1280),
            cross_attention_dim=768,
            attention_head_dim=8,
        ),
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipeline.to(torch.float16)
    pipeline.save_pretrained(folder)
    return folder
