"""One adapter from several, as peft's `add_weighted_adapter` makes it, from the factors alone.

`cat` puts the matrices one below the other: exact, and of the sum of the ranks. `svd` is the nearest to that
of a chosen rank; peft writes ΔW out for it, here it is `cat` and a truncation. `linear` adds A to A and B to
B, which is no sum of the ΔW but has their rank. Shapes as in `hubctl.adapter.low_rank`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from typing import Literal

from hubctl.adapter.contents import Adapter
from hubctl.adapter.layers import Layer
from hubctl.adapter.low_rank import Factors, factors, stacked, truncated, with_factors
from hubctl.errors import AdapterError, AdapterMismatchError, InputError

Method = Literal["linear", "svd", "cat"]
METHODS: tuple[Method, ...] = ("linear", "svd", "cat")

Part = tuple[Layer, float]
"""A layer and the weight of its adapter."""


def merge(adapters: Sequence[Adapter], weights: Sequence[float], method: Method, rank: int | None) -> Adapter:
    """The weighted sum of `adapters`, in the dialect of the first; every scale is then 1.

    A layer that some lack is the sum of the others.

    Args:
        adapters: At least two, for one base.
        weights: One for each; below zero takes away.
        method: peft's `combination_type`.
        rank: svd: of the result; by default the highest of all.

    Raises:
        AdapterError: one has DoRA or a head, which do not add up.
        AdapterMismatchError: a layer has another shape in one than in another.
        InputError: linear: ranks differ; or a rank is given that the method does not use.
    """
    if rank is not None and method != "svd":
        raise InputError(f"the method '{method}' has no rank to choose", hint="use --method svd with --rank")
    found: dict[str, list[Part]] = {}
    for adapter, weight in zip(adapters, weights, strict=True):
        if adapter.heads:
            _refuse(adapter.heads[0].name, "is saved whole, and heads do not add up")
        for layer in adapter.layers:
            if layer.magnitude is not None:
                _refuse(layer.where, "is DoRA, whose magnitudes do not add up")
            found.setdefault(layer.where, []).append((layer, weight))
    kept = rank or max(layer.rank for adapter in adapters for layer in adapter.layers)
    layers = tuple(_merged(found[where], method, kept) for where in sorted(found))
    return replace(adapters[0], layers=layers)


def _merged(parts: Sequence[Part], method: Method, rank: int) -> Layer:
    first = parts[0][0]
    for layer, _ in parts[1:]:
        if _sizes(layer) != _sizes(first):
            raise AdapterMismatchError(
                f"'{first.where}' is {_sizes(first)} in one adapter and {_sizes(layer)} in another",
                hint="merge adapters of one base",
            )
    joined = {"linear": _added, "cat": _stacked, "svd": _stacked}[method](parts)
    if method == "svd":
        joined = truncated(joined, rank)
    dtypes = {tensor.dtype for layer, _ in parts for tensor in (layer.a, layer.b)}
    dtype = dtypes.pop() if len(dtypes) == 1 else "F32"
    return with_factors(replace(first, rslora=False), joined, float(len(joined.a)), dtype)


def _stacked(parts: Sequence[Part]) -> Factors:
    scaled = (factors(layer, scaled=False) for layer, _ in parts)
    shares = (layer.scale * weight for layer, weight in parts)
    # The weight goes into A, as in peft.
    return stacked([Factors(x.a * share, x.b) for x, share in zip(scaled, shares, strict=True)])


def _added(parts: Sequence[Part]) -> Factors:
    ranks = {layer.rank for layer, _ in parts}
    if len(ranks) > 1:
        raise InputError(
            f"'{parts[0][0].where}' has ranks {', '.join(map(str, sorted(ranks)))}, "
            "and linear adds matrices of one rank",
            hint="use --method svd or --method cat",
        )
    summed: list[Factors] = []
    for layer, weight in parts:
        x, share = factors(layer, scaled=False), layer.scale * weight
        root = math.sqrt(abs(share))
        summed.append(Factors(x.a * math.copysign(root, share), x.b * root))
    first, *others = summed
    return reduce(lambda x, y: Factors(x.a + y.a, x.b + y.b), others, first)


def _sizes(layer: Layer) -> str:
    return "x".join(map(str, (layer.b.shape[0], *layer.a.shape[1:]))) + (" entries" * layer.embedding)


def _refuse(where: str, why: str) -> None:
    raise AdapterError(f"'{where}' {why}", hint="merge adapters of plain LoRA alone")
