"""Base models with the layer shapes of real ones and no weights at hand.

A folder with every file of a pipeline, where the denoiser's weights are a header before a hole in the file:
it takes no disk, loads the way real weights do, and gets random values once it is in memory. Text
encoders have one layer and the VAE is a tiny one, of the right widths: what is measured is the denoiser.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from torch import nn

from hubctl.base_models import embedded_bases

_TOKENS = 77
_HEADER_DTYPE = "F16"


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """One base model to measure, as data."""

    side_px: int
    steps: int
    """Denoising steps of one request; a segmentation takes none."""
    guidance: float = 1.0
    """Above 1, every image takes two rows of the denoiser."""
    pipeline: str = ""
    """diffusers' class; empty for a transformers model."""
    denoiser: str = "model"
    model: str = ""
    """Class of the denoiser, or of the whole transformers model."""
    config: Mapping[str, Any] = field(default_factory=dict)
    text_widths: Mapping[str, int] = field(default_factory=dict)
    """Component → hidden width of its text encoder."""
    latent_channels: int = 4
    scheduler: str = "DDIMScheduler"
    embedded: str = ""
    """Name of an embedded base, whose real weights are taken."""

    @property
    def rows_an_image(self) -> int:
        """Rows of the denoiser's batch that one image takes."""
        return 2 if self.guidance > 1 and self.scheduler == "DDIMScheduler" else 1


_SD15 = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
_SDXL = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
_SD3 = {
    "num_layers": 24,
    "num_attention_heads": 24,
    "caption_projection_dim": 1536,
    "pos_embed_max_size": 192,
}
_B2 = {"depths": [3, 4, 6, 3], "hidden_sizes": [64, 128, 320, 512], "decoder_hidden_size": 768}

SHAPES: Mapping[str, Shape] = {
    "emoji-64": Shape(
        side_px=64, steps=20, guidance=2.0, embedded="emoji-64", denoiser="unet",
        pipeline="StableDiffusionPipeline",
    ),
    "sd15": Shape(
        side_px=512, steps=20, guidance=7.5, denoiser="unet", pipeline="StableDiffusionPipeline",
        model="UNet2DConditionModel", config=_SD15, text_widths={"text_encoder": 768},
    ),
    "sd15-few": Shape(
        side_px=512, steps=4, denoiser="unet", pipeline="StableDiffusionPipeline",
        model="UNet2DConditionModel", config=_SD15, text_widths={"text_encoder": 768},
    ),
    "sdxl": Shape(
        side_px=1024, steps=20, guidance=5.0, denoiser="unet", pipeline="StableDiffusionXLPipeline",
        model="UNet2DConditionModel", config=_SDXL,
        text_widths={"text_encoder": 768, "text_encoder_2": 1280},
    ),
    "sd3-medium": Shape(
        side_px=1024, steps=20, denoiser="transformer", pipeline="StableDiffusion3Pipeline",
        model="SD3Transformer2DModel", config=_SD3, latent_channels=16,
        text_widths={"text_encoder": 768, "text_encoder_2": 1280},
        scheduler="FlowMatchEulerDiscreteScheduler",
    ),
    "flux1": Shape(
        side_px=1024, steps=20, guidance=3.5, denoiser="transformer", pipeline="FluxPipeline",
        model="FluxTransformer2DModel", config={"guidance_embeds": True}, latent_channels=16,
        text_widths={"text_encoder": 768, "text_encoder_2": 4096},
        scheduler="FlowMatchEulerDiscreteScheduler",
    ),
    "segformer-b0": Shape(side_px=512, steps=0, model="SegformerForSemanticSegmentation"),
    "segformer-b2": Shape(side_px=512, steps=0, model="SegformerForSemanticSegmentation", config=_B2),
}  # fmt: skip


def write_base(folder: Path, shape: Shape) -> Path:
    """Make the base in `folder`; returns where it is (an embedded one stays where it was)."""
    if shape.embedded:
        return embedded_bases()[shape.embedded]
    if not shape.pipeline:
        return _write_segmenter(folder, shape)
    with torch.device("meta"):
        denoiser = getattr(diffusers, shape.model)(**shape.config)
    parts = _small_parts(shape)
    pipeline = getattr(diffusers, shape.pipeline)(**{shape.denoiser: denoiser}, **parts)
    pipeline.save_config(folder)
    for name, part in parts.items():
        if part is not None and hasattr(part, "save_pretrained"):
            part.save_pretrained(folder / name)
    denoiser.save_config(folder / shape.denoiser)
    _write_hollow(folder / shape.denoiser / "diffusion_pytorch_model.safetensors", denoiser)
    return folder


def randomise(module: nn.Module, seed: int) -> None:
    """Fill every parameter with small noise, in place: zeros would let some processors run faster."""
    generator = torch.Generator(next(module.parameters()).device).manual_seed(seed)
    for parameter in module.parameters():
        parameter.data.normal_(0, 0.02, generator=generator)


def _small_parts(shape: Shape) -> dict[str, Any]:
    parts: dict[str, Any] = {}
    for name, width in shape.text_widths.items():
        t5 = shape.pipeline == "FluxPipeline" and name == "text_encoder_2"
        projected = name == "text_encoder_2" or shape.pipeline == "StableDiffusion3Pipeline"
        parts[name] = _t5(width) if t5 else _clip(width, projected=projected)
        tokenizer = name.replace("text_encoder", "tokenizer")
        parts[tokenizer] = _t5_tokenizer() if t5 else _clip_tokenizer()
    if shape.pipeline == "StableDiffusion3Pipeline":
        parts |= {"text_encoder_3": None, "tokenizer_3": None}
    if shape.pipeline == "StableDiffusionPipeline":
        parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    parts["scheduler"] = getattr(diffusers, shape.scheduler)()
    parts["vae"] = diffusers.AutoencoderTiny(latent_channels=shape.latent_channels)
    return parts


def _clip_tokenizer() -> Any:
    folder = embedded_bases()["emoji-64"] / "tokenizer"
    return transformers.CLIPTokenizer.from_pretrained(folder, model_max_length=_TOKENS)


def _clip(width: int, *, projected: bool) -> Any:
    tokenizer = _clip_tokenizer()
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=width,
        projection_dim=width,
        num_hidden_layers=1,
        num_attention_heads=width // 64,
        max_position_embeddings=_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    kind = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    return kind(config).half()


def _t5(width: int) -> Any:
    config = transformers.T5Config(
        vocab_size=128, d_model=width, d_kv=64, d_ff=64, num_heads=1, num_layers=1, is_encoder_decoder=False
    )
    return transformers.T5EncoderModel(config).half()


def _t5_tokenizer() -> Any:
    pieces = ["<pad>", "</s>", "<unk>", "\N{LOWER ONE EIGHTH BLOCK}", *"abcdefghijklmnopqrstuvwxyz"]
    return transformers.T5Tokenizer(vocab=[(piece, -1.0) for piece in pieces], extra_ids=0)


def _write_hollow(path: Path, module: nn.Module) -> None:
    """A safetensors file of the module's shapes: the header, and a hole where the values would be."""
    header, end = {}, 0
    for name, tensor in module.state_dict().items():
        begin, end = end, end + 2 * tensor.numel()
        header[name] = {"dtype": _HEADER_DTYPE, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    with path.open("r+b") as file:
        file.truncate(8 + len(text) + end)


def _write_segmenter(folder: Path, shape: Shape) -> Path:
    config = transformers.SegformerConfig(**shape.config)
    torch.manual_seed(0)
    getattr(transformers, shape.model)(config).save_pretrained(folder)
    processor = embedded_bases()["emoji-64-seg"] / "preprocessor_config.json"
    settings = json.loads(processor.read_text()) | {"size": {"height": shape.side_px, "width": shape.side_px}}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder
