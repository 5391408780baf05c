"""Tiny random base models and data, built on the spot: real code paths, no download."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

WORDS = ("red", "blue", "green", "apple", "house", "dog", "photo", "of", "a", "tok")
SIDE_PX = 32


def diffusion_base(folder: Path, *, prediction_type: str = "epsilon", tiny_vae: bool = False) -> Path:
    """A StableDiffusionPipeline folder for 32 px pictures, about 100,000 random parameters."""
    import torch
    from diffusers import (
        AutoencoderKL,
        AutoencoderTiny,
        DDIMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    tokens = ["<|startoftext|>", "<|endoftext|>", *(word + "</w>" for word in WORDS)]
    letters = sorted({letter for word in WORDS for letter in word})
    tokens += letters + [letter + "</w>" for letter in letters]
    merges = []
    for word in WORDS:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            pair = f"{parts[0]} {parts[1]}"
            joined = parts[0] + parts[1]
            if pair not in merges:
                merges.append(pair)
            if joined not in tokens:
                tokens.append(joined)
            parts = [joined, *parts[2:]]
    tokenizer_folder = folder / "tokenizer"
    tokenizer_folder.mkdir()
    (tokenizer_folder / "vocab.json").write_text(
        json.dumps({token: number for number, token in enumerate(tokens)})
    )
    (tokenizer_folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    tokenizer = CLIPTokenizer(
        str(tokenizer_folder / "vocab.json"), str(tokenizer_folder / "merges.txt"), model_max_length=12
    )
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokens),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=12,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
            projection_dim=16,
        )
    )
    vae = (
        AutoencoderTiny(
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1),
            latent_channels=4,
        )
        if tiny_vae
        else AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=4,
            scaling_factor=0.5,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=SIDE_PX // 2,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(prediction_type=prediction_type, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


def segmentation_base(folder: Path) -> Path:
    """A two-class SegFormer folder for 32 px pictures, about 30,000 random parameters."""
    import torch
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    torch.manual_seed(0)
    model = SegformerForSemanticSegmentation(
        SegformerConfig(
            num_encoder_blocks=2,
            depths=[1, 1],
            sr_ratios=[2, 1],
            hidden_sizes=[8, 16],
            patch_sizes=[3, 3],
            strides=[2, 2],
            num_attention_heads=[1, 2],
            mlp_ratios=[2, 2],
            decoder_hidden_size=16,
            id2label={0: "background", 1: "object"},
            label2id={"background": 0, "object": 1},
        )
    )
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "image_processor_type": "SegformerImageProcessor",
                "size": {"height": SIDE_PX, "width": SIDE_PX},
                "image_mean": [0.5, 0.5, 0.5],
                "image_std": [0.5, 0.5, 0.5],
            }
        )
    )
    return folder


def vision_base(folder: Path, *, headless: bool) -> Path:
    """A ViT folder for 32 px pictures: the backbone alone, or under a linear head with two classes."""
    import torch
    from transformers import ViTConfig, ViTModel

    from hubctl.modeling.linear_segmenter import LinearSegmenter, LinearSegmenterConfig

    torch.manual_seed(0)
    config = ViTConfig(image_size=SIDE_PX, patch_size=8, hidden_size=16, num_hidden_layers=2,
                       num_attention_heads=2, intermediate_size=24)  # fmt: skip
    model = ViTModel(config) if headless else LinearSegmenter(LinearSegmenterConfig(backbone_config=config))
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            {"image_processor_type": "ViTImageProcessor", "size": {"height": SIDE_PX, "width": SIDE_PX}}
        )
    )
    return folder


def picture(seed: int, side_px: int = SIDE_PX) -> Image.Image:
    """A coloured square on another colour."""
    random = np.random.default_rng(seed)
    pixels = np.empty((side_px, side_px, 3), np.uint8)
    pixels[:] = random.integers(0, 256, 3)
    pixels[8:24, 8:24] = random.integers(0, 256, 3)
    return Image.fromarray(pixels)


def captioned_folder(folder: Path, images: int = 4) -> Path:
    """Pictures and metadata.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(images):
        picture(number).save(folder / f"{number}.png")
        color = WORDS[number % 3]
        lines.append(json.dumps({"file_name": f"{number}.png", "text": f"{color} apple"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def masked_folder(folder: Path, images: int = 4, classes: int = 3) -> Path:
    """Pictures with masks: outside 0, the square 1, its middle 2 (with three classes)."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "masks").mkdir(exist_ok=True)
    mask = np.zeros((SIDE_PX, SIDE_PX), np.uint8)
    mask[8:24, 8:24] = 1
    if classes > 2:
        mask[12:20, 12:20] = 2
    for number in range(images):
        picture(number).save(folder / "images" / f"{number}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{number}.png")
    return folder
