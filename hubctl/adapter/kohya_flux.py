"""Flux in kohya's files: the layers of the original model, some of which are several of diffusers' in one.

A fused layer (`img_attn_qkv`) has one A and a tall B. Its parts have the same A and each their rows of B, so
taking it apart is exact; putting parts together is too where their A's are the same, and only there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from hubctl.adapter.layers import Layer
from hubctl.adapter.tensors import Tensor
from hubctl.errors import AdapterError

_DOUBLE = {
    "img_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "img_attn_proj": ("attn.to_out.0",),
    "txt_attn_proj": ("attn.to_add_out",),
    "img_mlp_0": ("ff.net.0.proj",),
    "img_mlp_2": ("ff.net.2",),
    "txt_mlp_0": ("ff_context.net.0.proj",),
    "txt_mlp_2": ("ff_context.net.2",),
    "img_mod_lin": ("norm1.linear",),
    "txt_mod_lin": ("norm1_context.linear",),
}
_SINGLE = {
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation_lin": ("norm.linear",),
}
_STACKS = {
    "double_blocks": ("transformer_blocks", _DOUBLE),
    "single_blocks": ("single_transformer_blocks", _SINGLE),
}


def is_flux_name(name: str) -> bool:
    """Whether kohya's `name` (after `lora_unet_`) is one of Flux's blocks."""
    return name.startswith(tuple(_STACKS))


def from_flux(name: str, fused: Layer) -> list[Layer]:
    """The layers of diffusers' transformer that kohya's `name` stands for; `fused` holds its numbers.

    Raises:
        AdapterError: it is none that this table knows, or B is too short for its parts.
    """
    found = re.fullmatch(r"(double_blocks|single_blocks)_(\d+)_(\w+)", name)
    stack, table = _STACKS[found[1]] if found else ("", {})
    parts = table.get(found[3]) if found else None
    if not found or parts is None:
        raise AdapterError(
            f"'{name[:80]}' is a layer that diffusers' Flux has no place for",
            hint="convert an adapter of the double and single blocks alone",
        )
    out, width = fused.b.shape[0], fused.a.shape[1]
    # A projection of attention is as tall as the model is wide; the feed-forward part takes the rest.
    ends = [width * (i + 1) for i in range(len(parts) - 1)] + [out]
    if ends != sorted(ends) or (len(parts) == 3 and out != 3 * width):
        raise AdapterError(f"'{name[:80]}' has {out} outputs, too few or many for {len(parts)} layers")
    prefix = f"{stack}.{found[2]}."
    return [
        replace(fused, component="transformer", module=prefix + part, b=fused.b.rows(start, end))
        for part, start, end in zip(parts, [0, *ends], ends, strict=False)
    ]


def to_flux(layers: Mapping[str, Layer]) -> dict[str, Layer]:
    """Kohya's names (after `lora_unet_`) for Flux's layers, given by their path in diffusers' transformer.

    Raises:
        AdapterError: kohya has no name for a layer, or fuses it with others that are missing or differ in A.
    """
    named: dict[str, Layer] = {}
    left = dict(layers)
    for path in sorted(layers):
        if path not in left:
            continue
        stack, number, part = _place(path)
        new, table = next((new, table) for new, (old, table) in _STACKS.items() if old == stack)
        name, parts = next((n, p) for n, p in table.items() if part in p)
        group = [left.pop(f"{stack}.{number}.{p}", None) for p in parts]
        first = group[0]
        if first is None or any(g is None or (g.a, g.scale) != (first.a, first.scale) for g in group):
            raise AdapterError(
                f"'transformer.{path}' cannot be written for kohya: "
                f"there '{name}' is one layer with one A, for {', '.join(parts)}",
                hint="use --to diffusers or --to peft, which ComfyUI and diffusers read",
            )
        b = Tensor(first.b.dtype, _tall([g for g in group if g]), b"".join(g.b.data for g in group if g))
        named[f"{new}_{number}_{name}"] = replace(first, b=b)
    return named


def _place(path: str) -> tuple[str, str, str]:
    found = re.fullmatch(r"(transformer_blocks|single_transformer_blocks)\.(\d+)\.(.+)", path)
    tables = {old: table for old, table in _STACKS.values()}
    if not found or not any(found[3] in parts for parts in tables[found[1]].values()):
        raise AdapterError(
            f"kohya's form has no name for 'transformer.{path}'", hint="use --to diffusers or --to peft"
        )
    return found[1], found[2], found[3]


def _tall(group: list[Layer]) -> tuple[int, ...]:
    return (sum(layer.b.shape[0] for layer in group), *group[0].b.shape[1:])
