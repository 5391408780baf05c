"""How many rows of a forward fit into a GPU's memory, by what earlier forwards of the kind took.

Only what was measured is known: the first forward of a kind has no cap from here, and what does not fit all
the same is split by the owner (`shared_module.py`). On a CPU nothing is measured and nothing capped.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch

RESERVE = 1 / 20
"""Share of the device's memory that no forward counts on: free pieces that are too small, other threads'
tensors, and what a forward takes whatever its rows."""
MOST_KINDS = 64
"""Kinds of forwards that are remembered; a kind is a group of `schedule.Waiting`."""
UNMEASURED_BYTES = 2 << 30
"""What counts as spare where nothing is measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """A device's memory at the end of a forward."""

    peak_bytes: int
    """The most that was allocated at once since the forward began."""
    free_bytes: int
    """Of the device, together with what the allocator holds unused."""
    total_bytes: int


class Gauge(Protocol):
    """Reads a device's memory."""

    def begin(self) -> int:
        """Watch for a new peak from here; the bytes allocated now."""

    def end(self) -> Reading:
        """What there was since `begin`."""


class CudaGauge:
    """The counters of torch's caching allocator and of the driver, for one GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def begin(self) -> int:
        """See `Gauge`."""
        torch.cuda.reset_peak_memory_stats(self._device)
        return torch.cuda.memory_allocated(self._device)

    def end(self) -> Reading:
        """See `Gauge`."""
        free_bytes, total_bytes = torch.cuda.mem_get_info(self._device)
        unused_bytes = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
        return Reading(
            peak_bytes=torch.cuda.max_memory_allocated(self._device),
            free_bytes=free_bytes + unused_bytes,
            total_bytes=total_bytes,
        )


def gauge_of(device: torch.device) -> Gauge | None:
    """A gauge for a device; None where there is nothing to read."""
    return CudaGauge(device) if device.type == "cuda" else None


def rows_that_fit(*, row_bytes: float, free_bytes: float, reserve_bytes: float) -> int:
    """Rows that one forward may have so that `reserve_bytes` stay free.

    At least 1: if even that does not fit, only trying tells. `row_bytes` below 1 counts as 1.
    """
    return max(1, int((free_bytes - reserve_bytes) // max(1, row_bytes)))


class MemoryCap:
    """What forwards of one module took; `forward` is the owner thread's, `most_rows` anyone's.

    Of each kind the forward with most rows counts. A part that does not grow with the rows weighs more in a
    smaller one: that would forbid what fits, and every small forward would shrink the next.
    """

    def __init__(self, gauge: Gauge | None) -> None:
        self._gauge = gauge
        self._taken: OrderedDict[Hashable, tuple[int, int]] = OrderedDict()  # kind → rows, and their bytes
        self._last: Reading | None = None

    @contextmanager
    def forward(self, kind: Hashable, rows: int) -> Iterator[None]:
        """Watch the block, one forward; what raises teaches nothing."""
        if self._gauge is None:
            yield
            return
        before_bytes = self._gauge.begin()
        yield
        self._last = self._gauge.end()
        if rows >= self._taken.get(kind, (0, 0))[0]:
            self._taken[kind] = rows, self._last.peak_bytes - before_bytes
        self._taken.move_to_end(kind)
        if len(self._taken) > MOST_KINDS:
            self._taken.popitem(last=False)

    def most_rows(self, kind: Hashable, most: int) -> int:
        """Rows that the next forward may have, and `most` at most."""
        row_bytes, last = self._row_bytes(kind), self._last
        if row_bytes is None or last is None:
            return most
        reserve_bytes = last.total_bytes * RESERVE
        return min(
            most, rows_that_fit(row_bytes=row_bytes, free_bytes=last.free_bytes, reserve_bytes=reserve_bytes)
        )

    def spare_bytes(self, kind: Hashable, rows: int) -> int:
        """What stays free beside the next forward, of `rows` rows; nothing before the first of its kind."""
        if self._gauge is None:
            return UNMEASURED_BYTES
        row_bytes, last = self._row_bytes(kind), self._last
        if row_bytes is None or last is None:
            return 0
        return max(0, int(last.free_bytes - last.total_bytes * RESERVE - row_bytes * rows))

    def _row_bytes(self, kind: Hashable) -> float | None:
        taken = self._taken.get(kind)
        return None if taken is None else taken[1] / taken[0]
