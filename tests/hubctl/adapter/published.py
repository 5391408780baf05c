"""The layers of published base models, from diffusers' own classes; no weights are made."""

from __future__ import annotations

from functools import cache
from typing import Any

from hubctl.adapter.fingerprint import Place

SDXL = {
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
}
# Where diffusers' defaults are not the published model's configuration, that is given.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "sd1": ("UNet2DConditionModel", {"cross_attention_dim": 768}),
    "sd2": (
        "UNet2DConditionModel",
        {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True},
    ),
    "sdxl": ("UNet2DConditionModel", SDXL),
    "sd3": (
        "SD3Transformer2DModel",
        {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536},
    ),
    "flux": ("FluxTransformer2DModel", {}),
    "flux2": ("Flux2Transformer2DModel", {}),
    "flux2-klein": (
        "Flux2Transformer2DModel",
        {"num_attention_heads": 24, "num_layers": 5, "num_single_layers": 20, "joint_attention_dim": 7680},
    ),
    "qwen-image": ("QwenImageTransformer2DModel", {}),
    "z-image": ("ZImageTransformer2DModel", {}),
    "sana": ("SanaTransformer2DModel", {}),
    "wan": ("WanTransformer3DModel", {}),
    "hunyuan-video": ("HunyuanVideoTransformer3DModel", {}),
    "ltx-video": ("LTXVideoTransformer3DModel", {}),
    "lumina2": ("Lumina2Transformer2DModel", {}),
    "auraflow": ("AuraFlowTransformer2DModel", {}),
    "pixart": ("PixArtTransformer2DModel", {}),
    "cogvideox": ("CogVideoXTransformer3DModel", {}),
}


@cache
def places(family: str) -> tuple[Place, ...]:
    """Every layer that LoRA can adapt; the models are built without memory for their weights."""
    import diffusers
    import torch

    name, config = MODELS[family]
    with torch.device("meta"):
        model = getattr(diffusers, name)(**config)
    component = "unet" if name.startswith("UNet") else "transformer"
    return tuple(
        Place(component, path, module.weight.shape[1], module.weight.shape[0])
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)
    )
