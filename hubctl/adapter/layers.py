"""One adapted layer with its numbers, and one tensor of a module that is saved whole."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hubctl.adapter.tensors import Tensor


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Whole:
    """One tensor of a module that the adapter replaces (peft's `modules_to_save`)."""

    module: str
    name: str
    """Path of the tensor; `module` is its beginning."""
    tensor: Tensor
