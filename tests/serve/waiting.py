"""Waiting in a test for what another thread, or process, does."""

from __future__ import annotations

import time
from collections.abc import Callable


def until(true: Callable[[], bool], *, within_s: float = 10) -> None:
    """Return as soon as the condition holds; fail when it has not within so many seconds."""
    deadline_s = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline_s
        time.sleep(0.001)
