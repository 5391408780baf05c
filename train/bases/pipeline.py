"""emoji-64's parts with their final shapes, and the folder they are saved in.

Shapes: latents [B, 4, 16, 16], text states [B, 24, 192].
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from train.bases.captions import MAX_TOKENS

TEXT_WIDTH = 192


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Makes the untrained text encoder: 3 layers, 192 wide."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def build_unet(latent_channels: int) -> UNet2DConditionModel:
    """Makes the untrained UNet: attention at 8x8 and below only, where it is cheap.

    The caption also reaches every block through the time embedding (`addition_embed_type`),
    which StableDiffusionPipeline feeds without knowing of it. Four levels with a scale and a shift
    learn as much in a step as three wider ones with a shift did (loss 0.758 and 0.762 after four
    minutes), and a step is quicker.
    """
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=latent_channels,
        out_channels=latent_channels,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(64, 96, 192, 256),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
        resnet_time_scale_shift="scale_shift",
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
    )


def build_scheduler() -> DDIMScheduler:
    """The noise schedule: linear, almost no signal left at its end, velocity predicted."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
    )


def save_pipeline(
    folder: Path,
    *,
    vae: AutoencoderTiny,
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
) -> None:
    """Saves a float16 StableDiffusionPipeline folder, part by part, each swapped in whole.

    Other files in the folder (card, pictures) stay.
    """
    pipeline = StableDiffusionPipeline(
        vae=vae,
        unet=unet,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    draft = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(draft, ignore_errors=True)
    pipeline.to(torch.float16).save_pretrained(draft)
    _write_slow_tokenizer_files(draft / "tokenizer")
    folder.mkdir(parents=True, exist_ok=True)
    for part in sorted(draft.iterdir()):
        target = folder / part.name
        if target.is_dir():
            for file in part.iterdir():
                os.replace(file, target / file.name)
        else:
            os.replace(part, target)
    shutil.rmtree(draft)


def _write_slow_tokenizer_files(folder: Path) -> None:
    """Adds vocab.json and merges.txt, which older readers of CLIP tokenizers ask for."""
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    merges = [" ".join(pair) for pair in model["merges"]]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False) + "\n")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
