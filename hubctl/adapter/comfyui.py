"""ComfyUI's dialect and its like: paths with dots, and the alpha of each layer in a tensor of its own.

`diffusion_model.<path>` (ComfyUI, ai-toolkit), or diffusers' own `transformer.<path>` with alphas or kohya's
lora_down and lora_up. The scale is alpha / rank; without an alpha it is 1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from hubctl.adapter.header import Header
from hubctl.adapter.kohya_flux import from_flux, is_flux_name
from hubctl.adapter.kohya_names import dotted, flat
from hubctl.adapter.layers import Layer, paired
from hubctl.adapter.names import current_name, renames
from hubctl.adapter.tensors import Tensor
from hubctl.errors import AdapterError

_COMFYUI = "diffusion_model"
_COMPONENTS = {
    _COMFYUI: "transformer", "transformer": "transformer", "unet": "unet",
    "text_encoder": "text_encoder", "text_encoder_2": "text_encoder_2",
}  # fmt: skip
_KEY = re.compile(
    rf"(?P<layer>(?P<prefix>{'|'.join(_COMPONENTS)})\.(?P<path>.+))\."
    r"(?:(?P<a>lora_A|lora_down)(?:\.default)?\.weight|(?P<b>lora_B|lora_up)(?:\.default)?\.weight|(?P<alpha>alpha))"
)
_MARKS = (".alpha", ".lora_down.weight", ".lora_up.weight")
_Z_IMAGE_OUT = re.compile(r"(?<=\.attention)\.out$")
"""What the original Z-Image calls diffusers' `to_out.0`."""


def is_comfyui(header: Header) -> bool:
    """Whether a weights file names its layers in this dialect, and states nothing of diffusers' settings."""
    return "lora_adapter_metadata" not in header.metadata and any(
        name.startswith(f"{_COMFYUI}.") or (name.endswith(_MARKS) and _KEY.fullmatch(name))
        for name in header.tensors
    )


def read_comfyui(tensors: Mapping[str, Tensor], file: str) -> tuple[Layer, ...]:
    """The layers of the file called `file`, sorted, with their paths in diffusers and transformers.

    Alphas count wherever they stand; diffusers 0.42 forgets those beside Flux's
    `transformer.<path>.lora_down`.

    Raises:
        AdapterError: a key that is no half of a LoRA, a half without its pair, or a UNet below
            `diffusion_model`, whose layers have other names there.
    """
    parts: dict[tuple[str, str, str], dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if not (found := _KEY.fullmatch(key)):
            raise AdapterError(f"{file} has a key that no LoRA has: '{key[:80]}'")
        halves = parts.setdefault((found["layer"], found["prefix"], found["path"]), {})
        if str(found.lastgroup) in halves:
            raise AdapterError(f"{file} has '{key[:80]}' twice, under two names")
        halves[str(found.lastgroup)] = tensor
    layers: dict[str, Layer] = {}
    for (name, prefix, path), halves in parts.items():
        if not {"a", "b"} <= set(halves):
            raise AdapterError(f"'{name[:80]}' lacks one of its halves", hint="save the adapter again, whole")
        one = paired(name, _COMPONENTS[prefix], halves["a"], halves["b"], halves.get("alpha"))
        for layer in _placed(one, path) if prefix != _COMFYUI else _placed_below(one, path):
            if layer.where in layers:
                raise AdapterError(f"{file} names '{layer.where[:80]}' twice, under two names")
            layers[layer.where] = layer
    return tuple(layers[where] for where in sorted(layers))


def _placed(layer: Layer, path: str) -> list[Layer]:
    return [replace(layer, module=current_name(path, renames(layer.component, ())))]


def _placed_below(layer: Layer, path: str) -> list[Layer]:
    """The layers of diffusers' transformer for `path` below `diffusion_model`."""
    if is_flux_name(path):
        return from_flux(flat(path), layer)
    if dotted(flat(path)):
        raise AdapterError(
            f"'{_COMFYUI}.{path[:80]}' is a layer of a UNet; hubctl reads this form for transformers alone",
            hint="save it with kohya's, diffusers' or peft's names",
        )
    return _placed(layer, _Z_IMAGE_OUT.sub(".to_out.0", path))
