"""Residency: how an adapter gets from its repository to rank rows, and how long it stays.

    PinnedRef ──fetch──▶ verified folder ──gate──▶ host tensors ──copy──▶ rows on the device

Each step happens once however many requests ask at the same time. Host tensors and rows have their own
budgets; the least recently used go first, rows only when no request leases them. Requests get their rows in
the order they came.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

from hubctl.errors import InputError
from hubctl.refs import PinnedRef
from serve.engine.lora_layers import HostRows, PooledUse, RowPool
from serve.engine.requests import LoraUse
from serve.engine.rows import RowLedger


@dataclass(frozen=True, slots=True, eq=False)
class HostAdapter:
    """An adapter in host memory, through the gate."""

    rows: HostRows
    heads: Mapping[str, nn.Module]
    """Modules that it replaces whole, by path, on the device already: they are few and small."""
    labels: Mapping[int, str] | None
    """What its classes mean, when they are not the base's."""

    @property
    def size_bytes(self) -> int:
        """Memory that it takes."""
        heads = (t.nbytes for head in self.heads.values() for t in head.state_dict().values())
        return self.rows.size_bytes + sum(heads)

    @property
    def wants(self) -> int:
        """Rows that it takes; at least one, so that an adapter of heads alone can be evicted too."""
        return max(1, self.rows.rank)


Load = Callable[[PinnedRef], HostAdapter]


class Residency:
    """The tiers of one engine's adapters; every method may be called from any thread."""

    def __init__(self, pool: RowPool, load: Load, *, total_rows: int, host_bytes: int) -> None:
        self._pool, self._load, self._host_budget = pool, load, host_bytes
        self._changed = threading.Condition()
        # All below is guarded by _changed.
        self._ledger: RowLedger[PinnedRef] = RowLedger(total_rows)
        self._hosts: OrderedDict[PinnedRef, HostAdapter] = OrderedDict()
        self._loading: dict[PinnedRef, Future[HostAdapter]] = {}
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
        """How many requests use `ref` now."""
        with self._changed:
            return self._ledger.leases(ref)

    def host(self, ref: PinnedRef, deadline_s: float | None = None) -> HostAdapter:
        """Bring an adapter to host memory, or wait for whoever does; raises what the gate raises."""
        with self._changed:
            if (found := self._hosts.get(ref)) is not None:
                self._hosts.move_to_end(ref)
                return found
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
            future.set_exception(error)
            raise
        with self._changed:
            del self._loading[ref]
            self._hosts[ref] = found
            self._trim()
        future.set_result(found)
        return found

    @contextmanager
    def lease(self, uses: Sequence[LoraUse], deadline_s: float | None) -> Iterator[tuple[PooledUse, ...]]:
        """Hold the rows of all of `uses` while the block runs.

        Raises:
            InputError: together they need more rows than there are.
            TimeoutError: the deadline has passed.
        """
        hosts = {use.ref: self.host(use.ref, deadline_s) for use in uses}
        rows = self._rows(hosts, deadline_s)
        try:
            yield tuple(
                PooledUse(
                    rows[use.ref][: hosts[use.ref].rows.rank],
                    use.scale,
                    hosts[use.ref].rows.layers,
                    hosts[use.ref].heads,
                )
                for use in uses
            )
        finally:
            with self._changed:
                for ref in hosts:
                    self._ledger.release(ref)
                self._changed.notify_all()

    def _rows(
        self, hosts: Mapping[PinnedRef, HostAdapter], deadline_s: float | None
    ) -> dict[PinnedRef, tuple[int, ...]]:
        if not hosts:
            return {}
        wants = {ref: host.wants for ref, host in hosts.items()}
        if sum(wants.values()) > self._ledger.capacity:
            need, have = sum(wants.values()), self._ledger.capacity
            raise InputError(
                f"the adapters have rank {need} together, the server has {have} rows",
                hint="use fewer adapters, or ask the operator to raise total_rows",
            )
        ticket = object()
        with self._changed:
            self._line.append(ticket)
            try:
                while self._line[0] is not ticket or (grant := self._ledger.lease(wants)) is None:
                    if not self._changed.wait(_remaining_s(deadline_s)):
                        raise _late("other requests hold all adapter rows")
                try:
                    # Under the lock: whoever leases the same adapter next must find it whole.
                    for ref in grant.new:
                        self._pool.write(grant.rows[ref], hosts[ref].rows)
                except BaseException:
                    for ref in wants:
                        self._ledger.release(ref)
                    for ref in grant.new:
                        self._ledger.drop(ref)
                    raise
                return grant.rows
            finally:
                self._line.remove(ticket)
                self._changed.notify_all()

    def _trim(self) -> None:
        while len(self._hosts) > 1 and sum(h.size_bytes for h in self._hosts.values()) > self._host_budget:
            self._hosts.popitem(last=False)


def _remaining_s(deadline_s: float | None) -> float | None:
    return None if deadline_s is None else max(0.0, deadline_s - time.monotonic())


def _late(why: str) -> TimeoutError:
    return TimeoutError(f"the request's time is up: {why}")
