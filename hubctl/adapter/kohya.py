"""Kohya's dialect (sd-scripts, A1111, Civitai): `lora_unet_<name>` with lora_down, lora_up and alpha.

One prefix for each part: `lora_unet_`, and `lora_te_` for Stable Diffusion's text encoder, `lora_te1_` and
`lora_te2_` for SDXL's two. The scale is alpha / rank; without an alpha it is 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import NoReturn

from hubctl.adapter.header import Header
from hubctl.adapter.kohya_flux import from_flux, is_flux_name, to_flux
from hubctl.adapter.kohya_names import dotted, flat, to_sgm
from hubctl.adapter.layers import Layer, paired
from hubctl.adapter.names import current_name, renames
from hubctl.adapter.tensors import Tensor, scalar
from hubctl.errors import AdapterError, InputError

_PREFIXES = {
    "lora_unet_": "unet",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te_": "text_encoder",
}
_DOWN, _UP, _ALPHA = ".lora_down.weight", ".lora_up.weight", ".alpha"
_OTHER_KINDS = {
    "hada_": "LoHa", "lokr_": "LoKr", "oft_": "OFT", "dora_scale": "LyCORIS' DoRA",
    "lora_mid": "LoCon with Tucker's decomposition", ".diff": "a difference of whole weights",
    "_norm.": "a difference of whole weights",
}  # fmt: skip


def is_kohya(header: Header) -> bool:
    """Whether the names in a weights file are kohya's."""
    return any(name.startswith(tuple(_PREFIXES)) for name in header.tensors)


def read_kohya(tensors: Mapping[str, Tensor], file: str) -> tuple[Layer, ...]:
    """The layers of kohya's file called `file`, sorted, with their paths in diffusers and transformers.

    Raises:
        AdapterError: a kind that is not LoRA (named), a key without its pair, or shapes that are no pair.
    """
    named: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        half = next((suffix for suffix in (_DOWN, _UP, _ALPHA) if key.endswith(suffix)), None)
        if half is None or not key.startswith(tuple(_PREFIXES)):
            _refuse(key, file)
        named.setdefault(key.removesuffix(half), {})[half] = tensor
    layers: dict[str, Layer] = {}
    for name, parts in named.items():
        for layer in _layers(name, parts):
            if layer.where in layers:
                raise AdapterError(f"{file} names '{layer.where[:80]}' twice, once in the original spelling")
            layers[layer.where] = layer
    return tuple(layers[where] for where in sorted(layers))


def kohya_tensors(layers: Iterable[Layer], *, original: bool = False) -> dict[str, Tensor]:
    """The tensors of kohya's file for `layers`; with `original`, an SDXL UNet is spelled as Stability's.

    Raises:
        AdapterError: a layer has no place in kohya's form: DoRA, embeddings, other models; it is named.
        InputError: `original`, but it is no SDXL.
    """
    layers = tuple(layers)
    for layer in layers:
        _refuse_unknown(layer)
    if original and (width := _text_width(layers)) in (768, 1024):
        raise InputError(
            f"its text has {width} features: Stable Diffusion's UNet, which kohya spells as diffusers does",
            hint="leave --former-names out",
        )
    components = {layer.component for layer in layers}
    one_encoder = not components & {"text_encoder_2", "transformer"} and not (
        original or _text_width(layers) == 2048
    )
    encoders = {"text_encoder": "lora_te_" if one_encoder else "lora_te1_", "text_encoder_2": "lora_te2_"}
    named: dict[str, Layer] = {}
    for layer in layers:
        if layer.component == "unet":
            name = flat(layer.module)
            named["lora_unet_" + (to_sgm(name) if original else name)] = layer
        elif layer.component in encoders:
            named[encoders[layer.component] + flat(clip_path(layer.module))] = layer
    flux = {layer.module: layer for layer in layers if layer.component == "transformer"}
    named |= {f"lora_unet_{name}": layer for name, layer in to_flux(flux).items()}
    tensors: dict[str, Tensor] = {}
    for name, layer in named.items():
        alpha = scalar(layer.scale * layer.rank)
        tensors |= {name + _DOWN: layer.a, name + _UP: layer.b, name + _ALPHA: alpha}
    return tensors


def clip_path(module: str) -> str:
    """A layer of a CLIP text encoder with the level that transformers 5 took out."""
    outside = module.startswith(("text_model.", "text_projection"))
    return module if outside else f"text_model.{module}"


def _layers(name: str, parts: Mapping[str, Tensor]) -> list[Layer]:
    prefix = next(p for p in _PREFIXES if name.startswith(p))
    if not {_DOWN, _UP} <= set(parts):
        raise AdapterError(
            f"'{name[:80]}' lacks its lora_down or lora_up", hint="save the adapter again, whole"
        )
    component, rest = _PREFIXES[prefix], name.removeprefix(prefix)
    layer = paired(name, component, parts[_DOWN], parts[_UP], parts.get(_ALPHA))
    if component == "unet" and is_flux_name(rest):
        return from_flux(rest, layer)
    path = dotted(rest)
    if path is None:
        raise AdapterError(
            f"'{name[:80]}' is no layer of Stable Diffusion, SDXL or Flux",
            hint="hubctl reads kohya's files for these alone; save it with diffusers or peft",
        )
    return [replace(layer, module=current_name(path, renames(component, ())))]


def _refuse_unknown(layer: Layer) -> None:
    """Refuse what kohya's form has no place for, before anything is renamed."""
    why = None
    if layer.magnitude is not None:
        why = "it is DoRA"
    elif layer.embedding:
        why = "it is a table of embeddings"
    elif layer.component == "model":
        why = "it is a layer of a whole transformers model"
    elif layer.component == "unet" and dotted(flat(layer.module)) != layer.module:
        why = "its path cannot be told from its kohya name"
    elif layer.component.startswith("text_encoder"):
        path = clip_path(layer.module)
        why = None if dotted(flat(path)) == path else "kohya's form knows CLIP text encoders alone"
    if why:
        raise AdapterError(
            f"kohya's form has no place for '{layer.where}': {why}", hint="use --to diffusers or --to peft"
        )


def _text_width(layers: Iterable[Layer]) -> int | None:
    """Features of the text that the UNet attends to: 2048 in SDXL."""
    return next((layer.a.shape[1] for layer in layers if layer.module.endswith("attn2.to_k")), None)


def _refuse(key: str, file: str) -> NoReturn:
    kind = next((kind for mark, kind in _OTHER_KINDS.items() if mark in key), None)
    if kind is None:
        raise AdapterError(f"{file} has a key that no LoRA of kohya's has: '{key[:80]}'")
    raise AdapterError(
        f"{file} holds {kind} ('{key[:80]}'), which is not LoRA and cannot become it exactly",
        hint="merge it into its base, then take a LoRA from the difference "
        "(sd-scripts: networks/extract_lora_from_models.py), and convert that",
    )
