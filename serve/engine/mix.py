"""What the samples of a forward use of the row pool: row numbers and scales, the same for every layer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from serve.engine.lora_layers import DORA_ROWS, Gathered

_WIDTHS = (4, 8, 16, 32, 64, 128, 256)
"""Row lists are padded to one of these: compiled graphs see no new shapes when adapters change."""


@dataclass(frozen=True, slots=True, eq=False)
class PooledUse:
    """One adapter of one request, once its rows are filled."""

    rows: tuple[int, ...]
    """Its rank rows."""
    scale: float
    layers: frozenset[int]
    """Slots that it changes."""
    heads: Mapping[str, nn.Module]
    """Modules that it replaces whole, by path."""
    dora: tuple[int, ...] = ()
    """Its `DORA_ROWS` further rows."""
    tokens: tuple[int, ...] = ()
    """Its further rows with the vectors of new tokens."""


Uses = tuple[PooledUse, ...]


@dataclass(frozen=True, slots=True, eq=False)
class DoraMix:
    """Which of a sample's adapters use DoRA."""

    rows: torch.Tensor
    """(N, D, 4) int64; row 0 for those that are not there."""
    scale: torch.Tensor
    """(N, D)"""
    before: torch.Tensor
    """(N, R) int64: how many of the D come before the adapter that a rank row belongs to."""


@dataclass(frozen=True, slots=True, eq=False)
class Mix:
    """What each sample of the present forward uses, or each group of samples side by side."""

    rows: torch.Tensor
    """(N, R) int64"""
    scale: torch.Tensor
    """(N, R)"""
    dora: DoraMix | None
    layers: frozenset[int]
    """Slots that any sample changes; the others run bare."""
    heads: tuple[Mapping[str, nn.Module], ...]
    """(N)"""
    batch: int
    """Rows of the forward; N of them or a multiple."""
    gathered: dict[int, Gathered] | None
    """By slot, what its layer has gathered; None when that would take more memory than the pool."""
    tokens: torch.Tensor | None = None
    """(N, K) int64: rows of new tokens; 0 for those that are not there."""

    def part(self, samples: Sequence[int]) -> Mix:
        """The mix of some of the samples."""
        index = torch.tensor(samples, device=self.rows.device)
        dora = self.dora and DoraMix(*(t[index] for t in (self.dora.rows, self.dora.scale, self.dora.before)))
        tokens = None if self.tokens is None else self.tokens[index]
        heads = tuple(self.heads[i] for i in samples)
        return Mix(self.rows[index], self.scale[index], dora, self.layers, heads, len(samples), None, tokens)


def mix_of(calls: Sequence[tuple[Uses, int]], pool: torch.Tensor, *, row_by_row: bool = False) -> Mix | None:
    """The mix of a forward's calls: the adapters of each, and its rows in the batch.

    Args:
        calls: In the order of the batch.
        pool: The pool's rows, of any layers: how many there are, their dtype, and where.
        row_by_row: Make a mix even where nobody uses an adapter, with a sample for every row.

    Returns:
        The mix; None where nobody uses an adapter.
    """
    if not row_by_row and not any(uses for uses, _ in calls):
        return None
    need = max(sum(len(use.rows) for use in uses) for uses, _ in calls)
    width = next((w for w in _WIDTHS if w >= need), need)
    # The two rows of a request with guidance are one sample here, unless a head must tell them apart.
    apart = row_by_row or any(use.heads for uses, _ in calls for use in uses)
    together = 1 if apart else math.gcd(*(n for _, n in calls))
    samples = [uses for uses, n in calls for _ in range(n // together)]
    rows = [[row for use in uses for row in use.rows] for uses in samples]
    scales = [[use.scale for use in uses for _ in use.rows] for uses in samples]
    return Mix(
        _padded(rows, width, 0).to(pool.device),
        _padded(scales, width, 0.0).to(pool.device, pool.dtype),
        _dora_of(samples, width, pool.device),
        frozenset().union(*(use.layers for uses, _ in calls for use in uses)),
        tuple({path: head for use in uses for path, head in use.heads.items()} for uses in samples),
        len(samples) * together,
        {} if len(samples) * width <= len(pool) else None,
        _tokens_of(samples, pool.device),
    )


def _dora_of(samples: Sequence[Uses], width: int, device: torch.device) -> DoraMix | None:
    with_dora = [[use for use in uses if use.dora] for uses in samples]
    most = max(map(len, with_dora))
    if not most:
        return None
    rows = [[use.dora for use in uses] for uses in with_dora]
    scales = [[use.scale for use in uses] for uses in with_dora]
    before = []
    for uses in samples:
        counts = itertools.accumulate((bool(use.dora) for use in uses), initial=0)
        before.append([count for use, count in zip(uses, counts, strict=False) for _ in use.rows])
    return DoraMix(
        _padded(rows, most, (0,) * DORA_ROWS).to(device),
        _padded(scales, most, 0.0).to(device, torch.float32),
        _padded(before, width, 0).to(device),
    )


def _tokens_of(samples: Sequence[Uses], device: torch.device) -> torch.Tensor | None:
    own = [[row for use in uses for row in use.tokens] for uses in samples]
    most = max(map(len, own))
    return _padded(own, most, 0).to(device) if most else None


def _padded(lists: Sequence[list[Any]], length: int, filling: Any) -> torch.Tensor:
    """Lists as the rows of a tensor of int64 or float64, each filled up to `length`."""
    filled = [values + [filling] * (length - len(values)) for values in lists]
    # By way of numpy, which reads lists four times as fast as torch.
    return torch.from_numpy(np.array(filled))
