"""Small real bases and adapters, written byte by byte: no torch, milliseconds."""

from __future__ import annotations

import json
import math
import random
import struct
from collections.abc import Mapping
from pathlib import Path

from hubctl.adapter.card import Card, render_card
from hubctl.adapter.package import BaseIdentity, Manifest, manifest_json

Shape = tuple[int, ...]

UNET: Mapping[str, Shape] = {
    "conv_in.weight": (8, 4, 3, 3),
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight": (8, 8),
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_v.weight": (8, 8),
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight": (8, 16),
}
TARGETS = tuple(name.removesuffix(".weight") for name in UNET if "attn" in name)


def write_tensors(
    path: Path, shapes: Mapping[str, Shape], *, seed: int = 0, metadata: dict[str, str] | None = None
) -> None:
    """A safetensors file of float32 tensors with small random values, the same for the same seed."""
    numbers = random.Random(seed)
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    body = b""
    for name, shape in shapes.items():
        values = [numbers.uniform(-0.1, 0.1) for _ in range(math.prod(shape))]
        data = struct.pack(f"<{len(values)}f", *values)
        offsets = [len(body), len(body) + len(data)]
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": offsets}
        body += data
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def write_base(folder: Path, unet: Mapping[str, Shape] = UNET) -> Path:
    """A Stable Diffusion folder as far as names and shapes go: index, UNet, text encoder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A tiny base\n")
    write_tensors(folder / "unet/diffusion_pytorch_model.safetensors", unet)
    (folder / "unet/config.json").write_text(json.dumps({"cross_attention_dim": 16}))
    write_tensors(folder / "text_encoder/model.safetensors", {"text_model.final_layer_norm.weight": (16,)})
    (folder / "text_encoder/config.json").write_text("{}")
    return folder


def write_adapter(
    folder: Path,
    base_model: str,
    *,
    rank: int = 2,
    seed: int = 1,
    unet: Mapping[str, Shape] = UNET,
    card: bool = True,
) -> Path:
    """An adapter folder for `write_base`'s UNet, as diffusers writes it, with card and manifest."""
    shapes: dict[str, Shape] = {}
    for target in TARGETS:
        out, inside = unet[f"{target}.weight"]
        shapes[f"unet.{target}.lora_A.weight"] = (rank, inside)
        shapes[f"unet.{target}.lora_B.weight"] = (out, rank)
    config = {"unet.r": rank, "unet.lora_alpha": rank, "unet.target_modules": ["to_q", "to_k", "to_v"]}
    write_tensors(
        folder / "pytorch_lora_weights.safetensors",
        shapes,
        seed=seed,
        metadata={"format": "pt", "lora_adapter_metadata": json.dumps(config)},
    )
    manifest = Manifest(task="text-to-image", base=BaseIdentity(id=base_model))
    (folder / "hubctl.json").write_text(manifest_json(manifest))
    if card:
        text = render_card(
            Card(
                title=folder.name,
                base_model=base_model,
                task="text-to-image",
                library="diffusers",
                summary="A test adapter.",
                license="apache-2.0",
            )
        )
        (folder / "README.md").write_text(text)
    return folder


def put_nan(weights: Path) -> None:
    """Overwrite the last number of a float32 safetensors file with NaN."""
    data = bytearray(weights.read_bytes())
    data[-4:] = struct.pack("<f", math.nan)
    weights.write_bytes(data)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of `folder`, by relative path."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
