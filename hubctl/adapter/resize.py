"""An adapter of lower rank: each ΔW replaced by the nearest one of that rank."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from hubctl.adapter.contents import Adapter
from hubctl.adapter.layers import Layer
from hubctl.adapter.low_rank import distance, factors, truncated, with_factors


@dataclass(frozen=True, kw_only=True, slots=True)
class Loss:
    """How far the ΔW of a group of layers are from what they were; norms are Frobenius norms."""

    group: str
    layers: int
    norm: float
    error: float

    @property
    def relative(self) -> float:
        """The error over the norm, and 0 where there was nothing to lose."""
        return self.error / self.norm if self.norm else 0.0


def resize(adapter: Adapter, rank: int) -> Adapter:
    """`adapter` with every layer cut to `rank`; layers of that rank or less stay as they are.

    Each layer keeps its scale, so that alpha falls with its rank. DoRA's magnitudes stay.
    """
    return replace(adapter, layers=tuple(_resized(layer, rank) for layer in adapter.layers))


def losses(before: Adapter, after: Adapter) -> tuple[list[Loss], Loss]:
    """What resizing cost, group by group and in all: of the numbers as they are saved, rounding included."""
    groups: dict[str, list[tuple[float, float]]] = {}
    for old, new in zip(before.layers, after.layers, strict=True):
        x = factors(old)
        lost = 0.0 if old is new else distance(x, factors(new))
        groups.setdefault(group(old), []).append((x.norm, lost))
    every = [pair for pairs in groups.values() for pair in pairs]
    return [_loss(name, pairs) for name, pairs in groups.items()], _loss("all", every)


def group(layer: Layer) -> str:
    """The block that a layer is in: its path as far as the first number, or its first word."""
    found = re.match(r"(mid_block|.*?\.\d+)(?=\.)", layer.module)
    return f"{layer.component}.{found[0] if found else layer.module.partition('.')[0]}"


def _resized(layer: Layer, rank: int) -> Layer:
    if layer.rank <= rank:
        return layer
    cut = truncated(factors(layer, scaled=False), rank)
    kept = len(cut.a)
    share = kept / layer.rank
    return with_factors(layer, cut, layer.alpha * (math.sqrt(share) if layer.rslora else share))


def _loss(name: str, pairs: Iterable[tuple[float, float]]) -> Loss:
    norms, errors = zip(*pairs, strict=True)
    return Loss(group=name, layers=len(norms), norm=math.hypot(*norms), error=math.hypot(*errors))
