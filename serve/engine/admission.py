"""How many requests run at once, and how many may wait for that; who is next, `fair` decides."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from hubctl.errors import OverloadedError, UnavailableError
from serve.engine.fair import FairLine, Ticket

RETRY_AFTER_S = 1.0


@dataclass(eq=False, kw_only=True, slots=True)
class _Guest(Ticket):
    called: threading.Event = field(default_factory=threading.Event)
    """Set with the place, or with the error."""
    error: Exception | None = None


class Admission:
    """Places for running requests and a bounded line before them; usable from any thread."""

    def __init__(self, *, max_running: int, max_queued: int) -> None:
        self._max_running, self._max_queued = max_running, max_queued
        self._lock = threading.Lock()
        # All below is guarded by _lock. While anyone waits, all places are taken.
        self._line: FairLine[_Guest] = FairLine(most_tenants=max_running + max_queued)
        self._running = 0
        self._closed = False

    @property
    def queued(self) -> int:
        """Requests that wait for a place."""
        with self._lock:
            return len(self._line)

    @property
    def running(self) -> int:
        """Requests that hold a place."""
        with self._lock:
            return self._running

    @contextmanager
    def place(self, deadline_s: float | None, *, tenant: str = "", cost: float = 1.0) -> Iterator[None]:
        """Hold a place while the block runs; `cost` counts against the tenant's share.

        Raises:
            OverloadedError: the line is full, or gets full while the tenant has more waiting than others.
            TimeoutError: the deadline has passed.
            UnavailableError: the engine is closed.
        """
        self._enter(_Guest(tenant=tenant, cost=cost), deadline_s)
        try:
            yield
        finally:
            with self._lock:
                self._running -= 1
                self._call()

    def close(self) -> None:
        """Refuse everyone who waits or comes."""
        with self._lock:
            self._closed = True
            while len(self._line):
                self._turn_away(self._line.take(), UnavailableError("the engine is closed"))

    def _enter(self, guest: _Guest, deadline_s: float | None) -> None:
        with self._lock:
            if self._closed:
                raise UnavailableError("the engine is closed")
            if self._running >= self._max_running and len(self._line) >= self._max_queued:
                self._make_room(guest.tenant)
            self._line.enter(guest)
            self._call()
        try:
            guest.called.wait(None if deadline_s is None else deadline_s - time.monotonic())
        finally:
            with self._lock:
                if not guest.called.is_set():
                    self._line.leave(guest)
                    guest.error = TimeoutError("the request's time is up: it was still waiting for a place")
        if guest.error is not None:
            raise guest.error

    def _call(self) -> None:
        while self._running < self._max_running and len(self._line):
            self._line.take().called.set()
            self._running += 1
        if not self._running:
            self._line.settle()

    def _make_room(self, tenant: str) -> None:
        waiting = len(self._line)
        leaving = self._line.giving_way(tenant)
        if leaving is None:
            raise OverloadedError(
                f"{waiting} requests wait already",
                hint="try again in a moment",
                retry_after_s=RETRY_AFTER_S,
            )
        self._line.leave(leaving)
        self._turn_away(
            leaving,
            OverloadedError(
                f"{waiting} requests wait already, more of them yours than anyone's: your newest gave way",
                hint="send fewer at once, or try again in a moment",
                retry_after_s=RETRY_AFTER_S,
            ),
        )

    def _turn_away(self, guest: _Guest, error: Exception) -> None:
        guest.error = error
        guest.called.set()
