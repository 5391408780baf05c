"""Tiny random base models and adapters, built from configurations and saved as their libraries save them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.training_utils import _collate_lora_metadata
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from hubctl.refs import PinnedRef

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
TEXT = ("q_proj", "v_proj")
CONVOLUTIONS = ("conv_in", "conv1", "conv2", "proj_in", "conv_shortcut", "time_emb_proj")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def write_stable_diffusion(folder: Path) -> Path:
    """A StableDiffusionPipeline of 32 px in a few hundred kilobytes."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=2,
        cross_attention_dim=32,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        sample_size=32,
    )
    vocabulary = {token: i for i, token in enumerate([*_LETTERS, *(f"{c}</w>" for c in _LETTERS)])}
    vocabulary |= {"<|startoftext|>": 52, "<|endoftext|>": 53}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=16)
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=54,
            hidden_size=32,
            intermediate_size=37,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=16,
            bos_token_id=52,
            eos_token_id=53,
            pad_token_id=53,
        )
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        clip_sample=False,
        set_alpha_to_one=False,
    )
    pipeline = StableDiffusionPipeline(
        unet=unet,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


def load_stable_diffusion(base: Path) -> Any:
    """The pipeline as a diffusers user loads it, in float32."""
    pipeline = StableDiffusionPipeline.from_pretrained(base, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def write_lora(
    folder: Path,
    base: Path,
    *,
    seed: int,
    rank: int = 4,
    alpha: float | None = None,
    targets: Sequence[str] = ATTENTION,
    text_targets: Sequence[str] = (),
    text_prefix: str = "",
    strength: float = 0.3,
    **settings: Any,
) -> Path:
    """An adapter for `base`'s UNet (and text encoder) with random weights, saved by diffusers itself."""
    pipeline = load_stable_diffusion(base)
    config = LoraConfig(
        r=rank, lora_alpha=rank if alpha is None else alpha, target_modules=list(targets), **settings
    )
    pipeline.unet.add_adapter(config)
    randomise(pipeline.unet, seed, strength)
    layers = {"unet_lora_layers": get_peft_model_state_dict(pipeline.unet)}
    parts = {"unet": pipeline.unet}
    if text_targets:
        text = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(text_targets))
        pipeline.text_encoder.add_adapter(text)
        randomise(pipeline.text_encoder, seed + 1, strength)
        state = get_peft_model_state_dict(pipeline.text_encoder)
        layers["text_encoder_lora_layers"] = {f"{text_prefix}{key}": value for key, value in state.items()}
        parts["text_encoder"] = pipeline.text_encoder
    StableDiffusionPipeline.save_lora_weights(folder, **layers, **_collate_lora_metadata(parts))
    return folder


def pinned(folder: Path) -> PinnedRef:
    """The reference of an adapter folder; the folder's path is its commit, for `fetch` to find it again."""
    weights = next(folder.glob("*.safetensors"))
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    return PinnedRef(f"tests/{folder.name}", "main", str(folder), digest)


def fetch(ref: PinnedRef) -> Path:
    """The folder behind `pinned`."""
    return Path(ref.commit)


def rewrite_config(folder: Path, name: str, **changes: Any) -> None:
    """Change entries of a JSON file."""
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def randomise(module: nn.Module, seed: int, strength: float) -> None:
    """Fill every LoRA matrix with noise of its own, so that the adapter changes something."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(module.named_parameters()):
        if "lora_" in name:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data = noise * strength / max(1, parameter[0].numel()) ** 0.5
