"""Ctrl-C and SIGTERM as exceptions, but never in the middle of starting or stopping a process."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """Turns signals into exceptions of the main thread, which alone may use it."""

    def __init__(self) -> None:
        self._held = 0
        self._pending: int | None = None

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Inside, a signal raises: SIGINT `KeyboardInterrupt`, the others `SystemExit(128 + number)`."""
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread may install handlers; whoever runs us elsewhere has their own
            return
        before = {number: signal.signal(number, self._arrived) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Inside, signals wait; the first of them raises at the end."""
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1
        self._raise_pending()

    @contextmanager
    def ignored(self) -> Iterator[None]:
        """Inside, and for good, signals count for nothing: everything is being stopped anyway."""
        self._held += 1
        yield

    def _arrived(self, number: int, _frame: FrameType | None) -> None:
        self._pending = self._pending or number
        self._raise_pending()

    def _raise_pending(self) -> None:
        if self._held or self._pending is None:
            return
        number, self._pending = self._pending, None
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        sys.exit(128 + number)
