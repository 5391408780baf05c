"""Adapters of random numbers, as layers in memory and as files, for everything that computes with them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hubctl.adapter.contents import Adapter, Dialect
from hubctl.adapter.layers import Layer
from hubctl.adapter.save import save_adapter
from hubctl.adapter.tensors import from_array, to_array

if TYPE_CHECKING:
    from hubctl.adapter.tensors import Array

ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"


def layer(
    module: str = f"{ATTENTION}.to_q",
    *,
    component: str = "unet",
    rank: int = 4,
    out: int = 12,
    inside: tuple[int, ...] = (10,),
    alpha: float | None = None,
    seed: int = 0,
    dtype: str = "F32",
    **more: Any,
) -> Layer:
    """One layer; `inside` is (in,) or (in, height, width)."""
    numbers = np.random.default_rng(seed)
    a = numbers.standard_normal((rank, *inside))
    b = numbers.standard_normal((out, rank, *(1,) * (len(inside) - 1)))
    return Layer(
        component=component,
        module=module,
        a=from_array(a, dtype),
        b=from_array(b, dtype),
        alpha=float(rank if alpha is None else alpha),
        **more,
    )


def dense(one: Layer) -> Array:
    """ΔW written out, (out, in * height * width)."""
    a, b = to_array(one.a).reshape(one.rank, -1), to_array(one.b).reshape(-1, one.rank)
    return one.scale * b @ a


def write(folder: Path, *layers: Layer, dialect: Dialect = "diffusers", **more: Any) -> Path:
    """The adapter of `layers` in a folder of its own."""
    folder.mkdir(parents=True)
    adapter = Adapter(dialect=dialect, layers=tuple(sorted(layers, key=lambda one: one.where)))
    save_adapter(adapter, folder, dialect, name=folder.name, **more)
    return folder
