"""What the numbers of an adapter say, one tensor at a time: NaN, infinity, layers that change nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from hubctl.adapter.header import Header, TensorInfo, non_finite
from hubctl.adapter.layer_shapes import LayerShapes
from hubctl.adapter.tensors import Tensor, number
from hubctl.errors import AdapterError

# Every one of these parts is a factor of what a layer of that kind adds: where one is zero, nothing is added.
_FACTORS = {
    "LoRA": ("A", "B"),
    "AdaLoRA": ("A", "B"),
    "LoHa": ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
    "LoKr": ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b"),
    "full difference": ("diff",),
}
_FIRST_BYTES = 4096
_MOST_OF_A_NUMBER = 16
"""Bytes: more than any number has, so that what holds several is seen."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Values:
    """What was found in the tensors."""

    non_finite: tuple[str, ...]
    """Tensors with NaN or infinity."""
    idle: tuple[str, ...]
    """Layers that multiply by zero, and so change nothing."""


def look_at_values(path: Path, header: Header, layers: Sequence[LayerShapes]) -> Values:
    """Read the tensors of `path`."""
    idle = []
    with path.open("rb") as file:
        for layer in layers:
            factors = [layer.keys[part] for part in _FACTORS.get(layer.kind, ()) if part in layer.keys]
            # DoRA's magnitudes change the layer even while the product is zero.
            moved = {"M", "diff_b", "bias"} & set(layer.keys)
            if not moved and any(_all_zero(file, header.tensors[key]) for key in factors):
                idle.append(layer.path)
    return Values(non_finite=tuple(non_finite(path, header)), idle=tuple(idle))


def number_in(path: Path, tensor: TensorInfo) -> float | None:
    """The one number that `tensor` of the file `path` holds; None for several, NaN, and other types."""
    with path.open("rb") as file:
        file.seek(tensor.start)
        data = file.read(min(tensor.end - tensor.start, _MOST_OF_A_NUMBER))
    try:
        found = number(Tensor(tensor.dtype, tensor.shape, data))
    except AdapterError:
        return None
    return found if math.isfinite(found) else None


def _all_zero(file: BinaryIO, tensor: TensorInfo) -> bool:
    """Whether all bytes are zero; trained tensors are told from the first few."""
    file.seek(tensor.start)
    size = tensor.end - tensor.start
    first = file.read(min(size, _FIRST_BYTES))
    if size == 0 or any(first):
        return False
    rest = file.read(size - len(first))
    return rest.count(0) == len(rest)
