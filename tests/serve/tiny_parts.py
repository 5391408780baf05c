"""Parts of tiny random pipelines: tokenizers of letters, text encoders and autoencoders."""

from __future__ import annotations

from typing import Any

from diffusers import AutoencoderKL
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

LETTERS = "abcdefghijklmnopqrstuvwxyz"
CLIP_TOKENS = 32
"""Longest prompt of the tiny CLIP, its two marks included."""


def clip_tokenizer() -> CLIPTokenizer:
    """Every letter is a token."""
    vocabulary = {token: i for i, token in enumerate([*LETTERS, *(f"{c}</w>" for c in LETTERS)])}
    vocabulary |= {"<|startoftext|>": 52, "<|endoftext|>": 53}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=CLIP_TOKENS)


def clip_text_encoder(width: int = 32, *, projection: bool = False, eos: int = 53) -> Any:
    """A CLIP text encoder; `eos` 2 means, as in the first releases, the token of the highest number."""
    config = CLIPTextConfig(
        vocab_size=54,
        hidden_size=width,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=CLIP_TOKENS,
        projection_dim=width,
        bos_token_id=52,
        eos_token_id=eos,
        pad_token_id=53,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)


def t5_tokenizer() -> T5Tokenizer:
    """Every letter is a token."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(letter, -3.0 - i / 100) for i, letter in enumerate(LETTERS)]
    return T5Tokenizer(vocab=pieces, extra_ids=0)


def t5_text_encoder(width: int = 32) -> T5EncoderModel:
    """T5 in one block."""
    return T5EncoderModel(
        T5Config(vocab_size=32, d_model=width, d_kv=8, d_ff=37, num_layers=1, num_heads=4, is_gated_act=True)
    )


def autoencoder(channels: int = 4, **settings: Any) -> AutoencoderKL:
    """Halves each side."""
    return AutoencoderKL(
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        sample_size=32,
        **settings,
    )
