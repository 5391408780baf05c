"""One adapted layer with its numbers, and one tensor of a module that is saved whole."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hubctl.adapter.tensors import Tensor, number
from hubctl.errors import AdapterError


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """LoRA of one layer: its weight gains ΔW = scale * B @ A (of an embedding table, the transpose)."""

    component: str
    """`unet`, `transformer`, `text_encoder`, `text_encoder_2`, or `model`."""
    module: str
    """Path of the layer inside the component, as `hubctl.adapter.names` spells it."""
    a: Tensor
    """(rank, in) or (rank, in, height, width)."""
    b: Tensor
    """(out, rank) or (out, rank, 1, 1)."""
    alpha: float
    rslora: bool = False
    """The scale is alpha / sqrt(rank), not alpha / rank."""
    embedding: bool = False
    magnitude: Tensor | None = None
    """DoRA's, one number for each output."""

    @property
    def where(self) -> str:
        """Component and path."""
        return f"{self.component}.{self.module}"

    @property
    def rank(self) -> int:
        """Rows of A."""
        return self.a.shape[0]

    @property
    def scale(self) -> float:
        """What B @ A is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


def paired(name: str, component: str, a: Tensor, b: Tensor, alpha: Tensor | None) -> Layer:
    """The layer, still without a path, of the halves and alpha that a file calls `name`.

    Without an alpha it is the rank.

    Raises:
        AdapterError: shapes that are no pair, or an alpha that is no sound number.
    """
    rank = a.shape[0] if a.shape else 0
    sound = len(a.shape) in (2, 4) and len(a.shape) == len(b.shape) and b.shape[1] == rank
    if not sound or 0 in a.shape + b.shape or b.shape[2:] != (1,) * (len(b.shape) - 2):
        raise AdapterError(
            f"'{name[:80]}' has shapes {list(a.shape)} and {list(b.shape)}, which are no LoRA pair"
        )
    value = float(rank) if alpha is None else number(alpha)
    if not math.isfinite(value):
        raise AdapterError(f"the alpha of '{name[:80]}' is {value}, not a sound number")
    return Layer(component=component, module="", a=a, b=b, alpha=value)


@dataclass(frozen=True, kw_only=True, slots=True)
class Whole:
    """One tensor of a module that the adapter replaces (peft's `modules_to_save`)."""

    module: str
    name: str
    """Path of the tensor; `module` is its beginning."""
    tensor: Tensor
