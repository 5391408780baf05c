"""ΔW = B @ A without ever making it: inner products, distances and truncation from the two factors.

Shapes: A (r, n), B (m, r), with r far below m and n; a convolution's A is flattened to
(r, in * height * width). All in float64. For the truncation: with B = Q R and Aᵀ = P S, the singular values
of B @ A are those of the r x r matrix R @ Sᵀ.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from hubctl.adapter.layers import Layer
from hubctl.adapter.tensors import FLOATS, from_array, to_array

if TYPE_CHECKING:
    from hubctl.adapter.tensors import Array


@dataclass(frozen=True, slots=True)
class Factors:
    """A (r, n) and B (m, r); the scale is part of B."""

    a: Array
    b: Array

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        return len(self.b), self.a.shape[1]

    @property
    def norm(self) -> float:
        """Frobenius norm of B @ A."""
        return math.sqrt(max(inner(self, self), 0.0))


def factors(layer: Layer, *, scaled: bool = True) -> Factors:
    """The layer's matrices, with its scale unless `scaled` is false."""
    a = to_array(layer.a, layer.where).reshape(layer.rank, -1)
    b = to_array(layer.b, layer.where).reshape(-1, layer.rank)
    return Factors(a, b * layer.scale if scaled else b)


def single(array: Array) -> Factors:
    """Any array as one row, so that it is compared as ΔW is."""
    import numpy as np

    return Factors(array.reshape(1, -1), np.ones((1, 1)))


def inner(x: Factors, y: Factors) -> float:
    """Sum of the products of the entries of two ΔW: tr((B1ᵀ B2)(A2 A1ᵀ))."""
    return float(((x.b.T @ y.b) * (x.a @ y.a.T)).sum())


def distance(x: Factors, y: Factors) -> float:
    """Frobenius norm of the difference of two ΔW; rounding leaves 1e-8 of their norms uncertain."""
    return math.sqrt(max(inner(x, x) + inner(y, y) - 2 * inner(x, y), 0.0))


def cosine(x: Factors, y: Factors) -> float | None:
    """Cosine of the angle between two ΔW, or None when one of them is zero."""
    size = x.norm * y.norm
    return max(-1.0, min(1.0, inner(x, y) / size)) if size else None


def stacked(parts: Sequence[Factors]) -> Factors:
    """Factors of the sum of several ΔW, of the sum of their ranks."""
    import numpy as np

    return Factors(
        np.concatenate([part.a for part in parts], axis=0), np.concatenate([part.b for part in parts], axis=1)
    )


def truncated(x: Factors, rank: int) -> Factors:
    """The nearest to x among all of at most `rank`; A and B get equal shares of the singular values."""
    import numpy as np

    q, r = np.linalg.qr(x.b)
    p, s = np.linalg.qr(x.a.T)
    u, values, v = np.linalg.svd(r @ s.T)
    kept = min(rank, len(values))
    root = np.sqrt(values[:kept])
    return Factors((root[:, None] * v[:kept]) @ p.T, q @ (u[:, :kept] * root))


def with_factors(layer: Layer, x: Factors, alpha: float, dtype: str | None = None) -> Layer:
    """`layer` with other matrices (which hold no scale) and another alpha, in `dtype` or those it has.

    Integers, which would round all of it away, become float32.
    """
    rank = len(x.a)
    kinds = (dtype or tensor.dtype for tensor in (layer.a, layer.b))
    of_a, of_b = (kind if kind in FLOATS else "F32" for kind in kinds)
    a = from_array(x.a.reshape(rank, *layer.a.shape[1:]), of_a)
    b = from_array(x.b.reshape(layer.b.shape[0], rank, *layer.b.shape[2:]), of_b)
    return replace(layer, a=a, b=b, alpha=alpha)
