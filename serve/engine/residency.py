"""Residency: how an adapter gets from its repository to rank rows, and how long it stays.

    PinnedRef ──fetch──▶ verified folder ──gate──▶ host tensors ──copy──▶ rows on the device

Each step happens once however many requests ask at the same time. Host tensors and rows have their own
budgets; the least recently used go first, rows only when no request leases them. An adapter whose rows are
there needs no host tensors. Requests get their rows in the order they came. What the gate refused is
remembered: its bytes will not change, since a reference is pinned by their hash.
"""

from __future__ import annotations

import copy
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

from hubctl.errors import AdapterError, InputError
from hubctl.refs import PinnedRef
from serve.engine.mix import PooledUse
from serve.engine.requests import LoraUse
from serve.engine.row_pool import HostRows, RowPool
from serve.engine.rows import RowLedger

MAX_REFUSED = 1024
"""Refused adapters that are remembered; beyond, the one refused first is forgotten."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Adapter:
    """What is known of an adapter that went through the gate."""

    rank: int
    rows: int
    """Rows that it takes: its rank, and more with DoRA or new tokens."""
    layers: frozenset[int]
    """Slots that it changes."""
    heads: Mapping[str, nn.Module]
    """Modules that it replaces whole, by path, on the device already: they are few and small."""
    labels: Mapping[int, str] | None
    """What its classes mean, when they are not the base's."""
    tokens: tuple[str, ...] = ()
    """Words of its own; their vectors are its last rows."""

    @property
    def wants(self) -> int:
        """Rows to lease; at least one, so that an adapter of heads alone can be evicted too."""
        return max(1, self.rows)


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    """An adapter in host memory."""

    adapter: Adapter
    rows: HostRows

    @property
    def size_bytes(self) -> int:
        """Memory that it takes."""
        heads = (t.nbytes for head in self.adapter.heads.values() for t in head.state_dict().values())
        return self.rows.size_bytes + sum(heads)


Load = Callable[[PinnedRef], Loaded]


class Residency:
    """The tiers of one engine's adapters; every method may be called from any thread."""

    def __init__(self, pool: RowPool, load: Load, *, total_rows: int, host_bytes: int) -> None:
        self._pool, self._load, self._host_budget = pool, load, host_bytes
        self._changed = threading.Condition()
        # All below is guarded by _changed.
        self._ledger: RowLedger[PinnedRef] = RowLedger(total_rows)
        self._adapters: dict[PinnedRef, Adapter] = {}  # those that hold rows
        self._hosts: OrderedDict[PinnedRef, Loaded] = OrderedDict()
        self._host_bytes = 0
        self._loading: dict[PinnedRef, Future[Loaded]] = {}
        self._refused: OrderedDict[PinnedRef, AdapterError] = OrderedDict()
        self._pinned: set[PinnedRef] = set()
        self._line: deque[object] = deque()

    @property
    def resident(self) -> tuple[PinnedRef, ...]:
        """Adapters that hold rows, the least recently used first."""
        with self._changed:
            return self._ledger.resident

    @property
    def rows_free(self) -> int:
        """Rows that no adapter holds."""
        with self._changed:
            return self._ledger.rows_free

    def leases(self, ref: PinnedRef) -> int:
        """How many requests use `ref` now; a pin counts as one."""
        with self._changed:
            return self._ledger.leases(ref)

    def prefetch(self, ref: PinnedRef, deadline_s: float | None = None) -> Adapter:
        """See that an adapter is in memory, on the device or the host; raises what the gate raises."""
        with self._changed:
            if (adapter := self._adapters.get(ref)) is not None:
                return adapter
        return self._host(ref, deadline_s).adapter

    def pin(self, ref: PinnedRef, deadline_s: float | None = None) -> None:
        """Keep an adapter's rows on the device until `unpin`; a second time does nothing.

        Raises what `lease` raises.
        """
        with self._changed:
            if ref in self._pinned:
                return
            self._pinned.add(ref)
        try:
            self._rows([ref], deadline_s)
        except BaseException:
            with self._changed:
                self._pinned.discard(ref)
            raise

    def unpin(self, ref: PinnedRef) -> None:
        """Let an adapter's rows go when others need them; not pinned, it stays as it is."""
        with self._changed:
            if ref in self._pinned:
                self._pinned.discard(ref)
                self._ledger.release(ref)
                self._changed.notify_all()

    @contextmanager
    def lease(self, uses: Sequence[LoraUse], deadline_s: float | None) -> Iterator[tuple[PooledUse, ...]]:
        """Hold the rows of all of `uses` while the block runs.

        Raises:
            AdapterError: the gate refuses one.
            InputError: together they need more rows than there are.
            TimeoutError: the deadline has passed.
        """
        refs = list(dict.fromkeys(use.ref for use in uses))
        held = self._rows(refs, deadline_s)
        try:
            yield tuple(_pooled(*held[use.ref], use.scale) for use in uses)
        finally:
            with self._changed:
                for ref in refs:
                    self._ledger.release(ref)
                self._changed.notify_all()

    def _host(self, ref: PinnedRef, deadline_s: float | None) -> Loaded:
        """Bring an adapter to host memory, or wait for whoever does."""
        with self._changed:
            if (found := self._hosts.get(ref)) is not None:
                self._hosts.move_to_end(ref)
                return found
            if (refused := self._refused.get(ref)) is not None:
                # A copy: raised in several threads at once, one object would collect all their frames.
                raise copy.copy(refused)
            future = self._loading.get(ref)
            mine = future is None
            if future is None:
                future = self._loading[ref] = Future()
        if not mine:
            try:
                return future.result(_remaining_s(deadline_s))
            except FutureTimeoutError:
                raise _late(f"{ref} was still loading") from None
        try:
            found = self._load(ref)
        except BaseException as error:
            with self._changed:
                del self._loading[ref]
                if isinstance(error, AdapterError):
                    self._refuse(ref, error)
            future.set_exception(error)
            raise
        with self._changed:
            del self._loading[ref]
            self._keep(ref, found)
        future.set_result(found)
        return found

    def _rows(
        self, refs: Sequence[PinnedRef], deadline_s: float | None
    ) -> dict[PinnedRef, tuple[Adapter, tuple[int, ...]]]:
        """Lease the rows of `refs`, filled."""
        if not refs:
            return {}
        for ref in refs:
            self.prefetch(ref, deadline_s)
        ticket = object()
        with self._changed:
            self._line.append(ticket)
        try:
            while True:
                with self._changed:
                    absent = [ref for ref in refs if ref not in self._adapters]
                # Outside the lock, since it may read files: host memory may have let go of them again.
                loaded = {ref: self._host(ref, deadline_s) for ref in absent}
                with self._changed:
                    while self._line[0] is not ticket:
                        self._wait(deadline_s)
                    if held := self._leased(refs, loaded, deadline_s):
                        return held
        finally:
            with self._changed:
                self._line.remove(ticket)
                self._changed.notify_all()

    def _leased(
        self, refs: Sequence[PinnedRef], loaded: Mapping[PinnedRef, Loaded], deadline_s: float | None
    ) -> dict[PinnedRef, tuple[Adapter, tuple[int, ...]]] | None:
        """Lease what is resident or in `loaded`, waiting for rows; None when one was evicted meanwhile.

        The caller holds the lock and is first in the line.
        """
        while True:
            known = {ref: self._adapters.get(ref) or loaded[ref].adapter
                     for ref in refs if ref in self._adapters or ref in loaded}  # fmt: skip
            if len(known) < len(refs):
                return None
            wants = {ref: adapter.wants for ref, adapter in known.items()}
            if sum(wants.values()) > self._ledger.capacity:
                need, have = sum(wants.values()), self._ledger.capacity
                raise InputError(
                    f"the adapters take {need} rows together, the server has {have}",
                    hint="use fewer adapters, or ask the operator to raise total_rows",
                    param="loras",
                )
            if (grant := self._ledger.lease(wants)) is not None:
                break
            self._wait(deadline_s)
        for ref in grant.evicted:
            del self._adapters[ref]
        try:
            # Under the lock: whoever leases the same adapter next must find it whole.
            for ref in grant.new:
                self._pool.write(grant.rows[ref], loaded[ref].rows)
        except BaseException:
            for ref in wants:
                self._ledger.release(ref)
            for ref in grant.new:
                self._ledger.drop(ref)
            raise
        self._adapters |= {ref: known[ref] for ref in grant.new}
        return {ref: (known[ref], grant.rows[ref]) for ref in refs}

    def _wait(self, deadline_s: float | None) -> None:
        remaining_s = _remaining_s(deadline_s)
        if remaining_s == 0 or not self._changed.wait(remaining_s):
            raise _late("other requests hold all adapter rows")

    def _keep(self, ref: PinnedRef, found: Loaded) -> None:
        self._hosts[ref] = found
        self._host_bytes += found.size_bytes
        while len(self._hosts) > 1 and self._host_bytes > self._host_budget:
            self._host_bytes -= self._hosts.popitem(last=False)[1].size_bytes

    def _refuse(self, ref: PinnedRef, error: AdapterError) -> None:
        self._refused[ref] = copy.copy(error)  # without the frames it went through
        if len(self._refused) > MAX_REFUSED:
            self._refused.popitem(last=False)


def _pooled(adapter: Adapter, rows: tuple[int, ...], scale: float) -> PooledUse:
    tokens = adapter.rows - len(adapter.tokens)
    dora = rows[adapter.rank : tokens]
    return PooledUse(
        rows[: adapter.rank], scale, adapter.layers, adapter.heads, dora, rows[tokens : adapter.rows]
    )


def _remaining_s(deadline_s: float | None) -> float | None:
    return None if deadline_s is None else max(0.0, deadline_s - time.monotonic())


def _late(why: str) -> TimeoutError:
    return TimeoutError(f"the request's time is up: {why}")
