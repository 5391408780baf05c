"""An adapter in memory onto disk, in diffusers', peft's or kohya's dialect.

The bytes of its tensors stay as they are; names, alphas and settings become those of the dialect.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from hubctl.adapter.contents import Adapter, Dialect
from hubctl.adapter.former_names import former_name
from hubctl.adapter.kohya import clip_path, kohya_tensors
from hubctl.adapter.layers import Layer, Whole
from hubctl.adapter.layout import CONFIG_PEFT, PEFT_COMPONENT, WEIGHTS_DIFFUSERS, WEIGHTS_PEFT
from hubctl.adapter.tensors import Tensor, write_tensors
from hubctl.errors import AdapterError

_CLASSES = {
    "unet": ("UNet2DConditionModel", "diffusers.models.unets.unet_2d_condition"),
    "text_encoder": ("CLIPTextModel", "transformers.models.clip.modeling_clip"),
    "text_encoder_2": ("CLIPTextModelWithProjection", "transformers.models.clip.modeling_clip"),
}
"""What peft's `auto_mapping` says of a component: class and module."""

Spelling = Literal["current", "former"]

_KEPT = ("base_model_name_or_path", "revision", "task_type", "auto_mapping")


def save_adapter(
    adapter: Adapter,
    folder: Path,
    dialect: Dialect,
    *,
    name: str,
    base: str | None = None,
    spelling: Spelling = "current",
) -> None:
    """Write the weights, and the settings that belong to them, of `adapter` into `folder`.

    Args:
        adapter: What to write.
        folder: Exists. peft knows one model at a time: several components get a subfolder each.
        dialect: In which form.
        name: kohya: what the weights file is called.
        base: The base model's name, for the dialects that note it.
        spelling: `former` spells layers as they once were: for peft as in transformers 4 (CLIP, SegFormer),
            for kohya as in Stability's own SDXL UNet, which sd-scripts trains.

    Raises:
        AdapterError: the dialect has no place for a part of the adapter; the message names it.
    """
    if dialect == "diffusers":
        _save_diffusers(adapter, folder)
    elif dialect == "kohya":
        _save_kohya(adapter, folder / f"{name}.safetensors", base, original=spelling == "former")
    elif len(adapter.components) == 1:
        _save_peft(adapter.layers, adapter.heads, folder, adapter.config, base, spelling)
    else:
        for component in adapter.components:
            (folder / component).mkdir()
            layers = [layer for layer in adapter.layers if layer.component == component]
            _save_peft(layers, (), folder / component, adapter.config, base, spelling)


def lora_settings(layers: Sequence[Layer]) -> dict[str, Any]:
    """The fields of peft's LoraConfig that say what `layers`, all of one component, are.

    Raises:
        AdapterError: some are DoRA and some are not, which no dialect can say.
    """
    dora = {layer.magnitude is not None for layer in layers}
    if len(dora) > 1:
        raise AdapterError("some layers are DoRA and some are not", hint="no dialect can say so")
    rslora = any(layer.rslora for layer in layers)
    ranks = {layer.module: layer.rank for layer in layers}
    alphas = {layer.module: _alpha(layer, rslora=rslora) for layer in layers}
    rank, rank_pattern = _usual(ranks)
    alpha, alpha_pattern = _usual(alphas)
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": rank_pattern,
        "alpha_pattern": alpha_pattern,
        "target_modules": sorted(ranks),
        "use_rslora": rslora,
        "use_dora": dora == {True},
        "bias": "none",
    }


def _save_diffusers(adapter: Adapter, folder: Path) -> None:
    if adapter.heads or "model" in adapter.components:
        part = adapter.heads[0].name if adapter.heads else adapter.layers[0].module
        raise AdapterError(
            f"diffusers' form has no place for '{part}': it is for the parts of a pipeline",
            hint="use --to peft; or say which part of a pipeline it is for: --component unet",
        )
    tensors: dict[str, Tensor] = {}
    settings: dict[str, Any] = {}
    for component in adapter.components:
        layers = [layer for layer in adapter.layers if layer.component == component]
        settings |= {f"{component}.{name}": value for name, value in lora_settings(layers).items()}
        # CLIP keeps the level that transformers 5 took out: diffusers drops it where it is not needed.
        clip = component.startswith("text_encoder") and _is_clip(layers)
        for layer in layers:
            path = clip_path(layer.module) if clip else layer.module
            tensors |= _halves(f"{component}.{path}", layer)
    kept = {k: v for k, v in adapter.metadata.items() if k not in ("lora_adapter_metadata", PEFT_COMPONENT)}
    metadata = {**kept, "format": "pt", "lora_adapter_metadata": json.dumps(settings, sort_keys=True)}
    write_tensors(folder / WEIGHTS_DIFFUSERS, tensors, metadata)


def _save_peft(
    layers: Sequence[Layer],
    heads: Sequence[Whole],
    folder: Path,
    config: Mapping[str, Any] | None,
    base: str | None,
    spelling: Spelling,
) -> None:
    component = layers[0].component if layers else "model"
    names = [layer.module for layer in layers] + [head.name for head in heads]
    clip = component.startswith("text_encoder") and _is_clip(layers)

    def spelled(name: str) -> str:
        # SDXL's second text encoder is a CLIP below a projection, and has that level in every transformers.
        if clip and (spelling == "former" or component == "text_encoder_2"):
            return clip_path(name)
        return former_name(name, names) if spelling == "former" else name

    layers = [replace(layer, module=spelled(layer.module)) for layer in layers]
    tensors: dict[str, Tensor] = {}
    for layer in layers:
        tensors |= _halves(f"base_model.model.{layer.module}", layer)
    tensors |= {f"base_model.model.{spelled(head.name)}": head.tensor for head in heads}
    settings = lora_settings(layers)
    kept = {name: (config or {}).get(name) for name in _KEPT}
    kept["base_model_name_or_path"] = kept["base_model_name_or_path"] or base
    if component in _CLASSES:
        kept["auto_mapping"] = dict(
            zip(("base_model_class", "parent_library"), _CLASSES[component], strict=True)
        )
    settings |= kept | {
        "modules_to_save": sorted({spelled(head.module) for head in heads}) or None,
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
    (folder / CONFIG_PEFT).write_text(text, encoding="utf-8")
    metadata = {"format": "pt"} | ({PEFT_COMPONENT: component} if component != "model" else {})
    write_tensors(folder / WEIGHTS_PEFT, tensors, metadata)


def _save_kohya(adapter: Adapter, path: Path, base: str | None, *, original: bool) -> None:
    if adapter.heads:
        raise AdapterError(
            f"kohya's form has no place for '{adapter.heads[0].name}', which the adapter saves whole",
            hint="use --to peft",
        )
    tensors = kohya_tensors(adapter.layers, original=original)
    rank, ranks = _usual({layer.where: layer.rank for layer in adapter.layers})
    alpha, alphas = _usual({layer.where: layer.scale * layer.rank for layer in adapter.layers})
    own = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": "Dynamic" if ranks else str(rank),
        "ss_network_alpha": "Dynamic" if alphas else f"{alpha:.10g}",
    }
    if base:
        own["ss_sd_model_name"] = base
    # Hashes of the former file would be wrong; A1111 makes them anew.
    kept = {k: v for k, v in adapter.metadata.items() if k.startswith(("ss_", "modelspec."))}
    kept.pop("modelspec.hash_sha256", None)
    write_tensors(path, tensors, kept | own)


def _halves(prefix: str, layer: Layer) -> dict[str, Tensor]:
    kind = ".lora_embedding_{}" if layer.embedding else ".lora_{}.weight"
    found = {prefix + kind.format("A"): layer.a, prefix + kind.format("B"): layer.b}
    return found if layer.magnitude is None else found | {f"{prefix}.lora_magnitude_vector": layer.magnitude}


def _alpha(layer: Layer, *, rslora: bool) -> float:
    if layer.rslora == rslora:
        return layer.alpha
    return layer.scale * (math.sqrt(layer.rank) if rslora else layer.rank)


def _usual(values: Mapping[str, float]) -> tuple[float, dict[str, float]]:
    """The most frequent value, and the table of those that differ; whole numbers as such."""
    whole = {name: int(value) if value == int(value) else value for name, value in values.items()}
    usual, _ = Counter(whole.values()).most_common(1)[0] if whole else (8, 0)
    others = {name: value for name, value in whole.items() if value != usual}
    # A pattern fits every path that ends with it, unless it is marked as the whole.
    return usual, {
        ("^" if any(other.endswith(f".{name}") for other in whole) else "") + name: value
        for name, value in others.items()
    }


def _is_clip(layers: Iterable[Layer]) -> bool:
    """Whether a text encoder is CLIP's and not T5: by the layers that it has."""
    return all(
        layer.module.removeprefix("text_model.").startswith(("encoder.layers.", "embeddings.", "text_proj"))
        for layer in layers
    )
