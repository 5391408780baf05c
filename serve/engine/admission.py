"""How many requests run at once, and how many may wait for that, in the order they came."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from hubctl.errors import OverloadedError, UnavailableError


class Admission:
    """Places for running requests and a bounded line before them; usable from any thread."""

    def __init__(self, *, max_running: int, max_queued: int) -> None:
        self._max_running, self._max_queued = max_running, max_queued
        self._changed = threading.Condition()
        # All below is guarded by _changed.
        self._line: deque[object] = deque()
        self._running = 0
        self._closed = False

    @property
    def queued(self) -> int:
        """Requests that wait for a place."""
        with self._changed:
            return len(self._line)

    @property
    def running(self) -> int:
        """Requests that hold a place."""
        with self._changed:
            return self._running

    @contextmanager
    def place(self, deadline_s: float | None) -> Iterator[None]:
        """Hold a place while the block runs.

        Raises:
            OverloadedError: the line is full.
            TimeoutError: the deadline has passed.
            UnavailableError: the engine is closed.
        """
        self._enter(deadline_s)
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def close(self) -> None:
        """Refuse everyone who waits or comes."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _enter(self, deadline_s: float | None) -> None:
        ticket = object()
        with self._changed:
            if len(self._line) >= self._max_queued and self._running >= self._max_running:
                raise OverloadedError(
                    f"{len(self._line)} requests wait already",
                    hint="try again in a moment",
                    retry_after_s=1.0,
                )
            self._line.append(ticket)
            try:
                while not self._closed and (
                    self._line[0] is not ticket or self._running >= self._max_running
                ):
                    remaining_s = None if deadline_s is None else deadline_s - time.monotonic()
                    if remaining_s is not None and remaining_s <= 0:
                        raise TimeoutError("the request's time is up: it was still waiting for a place")
                    self._changed.wait(remaining_s)
                if self._closed:
                    raise UnavailableError("the engine is closed")
                self._running += 1
            finally:
                self._line.remove(ticket)
                self._changed.notify_all()
