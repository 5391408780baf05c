"""Row ledger: which rank rows belong to which adapter, and who may be evicted. Pure bookkeeping.

The device holds `total_rows` rank rows. Row 0 is always zero (it pads short lists), so `total_rows - 1` can
be given away. An adapter of rank r holds r of them, not necessarily neighbours. Rows of a leased adapter are
never taken.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


@dataclass(slots=True)
class _Entry:
    rows: tuple[int, ...]
    leases: int = 0


@dataclass(frozen=True, slots=True)
class Grant(Generic[K]):
    """The outcome of a successful lease."""

    rows: dict[K, tuple[int, ...]]
    """Of every adapter asked for."""
    new: tuple[K, ...]
    """Those whose rows must be filled before they are used."""
    evicted: tuple[K, ...]
    """Those whose rows were taken."""


@dataclass(slots=True)
class RowLedger(Generic[K]):
    """Owner of the row numbers. Not thread-safe: its caller holds a lock."""

    total_rows: int
    _free: list[int] = field(init=False)
    # Least recently used first: a lease moves its adapter to the end.
    _entries: OrderedDict[K, _Entry] = field(init=False)

    def __post_init__(self) -> None:
        self._free = list(range(self.total_rows - 1, 0, -1))
        self._entries = OrderedDict()

    @property
    def capacity(self) -> int:
        """Rows that adapters can ever hold at once."""
        return self.total_rows - 1

    @property
    def rows_free(self) -> int:
        """Rows that no adapter holds."""
        return len(self._free)

    @property
    def resident(self) -> tuple[K, ...]:
        """Adapters that hold rows, the least recently used first."""
        return tuple(self._entries)

    def leases(self, key: K) -> int:
        """How many requests use `key` now."""
        return self._entries[key].leases if key in self._entries else 0

    def lease(self, wants: Mapping[K, int]) -> Grant[K] | None:
        """Lease all of `wants` (adapter → rank), or nothing.

        All at once, because two requests that each hold one adapter and wait for a second would wait for
        ever.

        Returns:
            The grant, or None when rows must come back first.

        Raises:
            ValueError: even an empty ledger could not hold them all.
        """
        need = sum(wants.values())
        if need > self.capacity or any(rank < 0 for rank in wants.values()):
            raise ValueError(f"{need} rows asked for, {self.capacity} exist")
        missing = {key: rank for key, rank in wants.items() if key not in self._entries}
        victims = self._victims(sum(missing.values()) - len(self._free), keep=wants)
        if victims is None:
            return None
        for key in victims:
            self._free.extend(self._entries.pop(key).rows)
        for key, rank in missing.items():
            # In order: neighbours are filled in one go.
            self._entries[key] = _Entry(tuple(sorted(self._free.pop() for _ in range(rank))))
        for key in wants:
            self._entries[key].leases += 1
            self._entries.move_to_end(key)
        return Grant({key: self._entries[key].rows for key in wants}, tuple(missing), victims)

    def release(self, key: K) -> None:
        """End one lease of `key`; its rows stay until someone needs them."""
        entry = self._entries[key]
        if entry.leases < 1:
            raise ValueError(f"{key} is not leased")
        entry.leases -= 1

    def drop(self, key: K) -> None:
        """Free the rows of `key`, whose leases have all ended.

        Raises:
            ValueError: somebody uses it.
        """
        if self._entries[key].leases:
            raise ValueError(f"{key} is leased")
        self._free.extend(self._entries.pop(key).rows)

    def _victims(self, short: int, *, keep: Mapping[K, int]) -> tuple[K, ...] | None:
        """Unleased adapters that hold `short` rows, least recently used first; None when too few are."""
        victims = []
        for key, entry in self._entries.items():
            if short <= 0:
                break
            if not entry.leases and key not in keep and entry.rows:
                victims.append(key)
                short -= len(entry.rows)
        return tuple(victims) if short <= 0 else None
