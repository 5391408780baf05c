"""Waiting in a test for what another thread does."""

from __future__ import annotations

import time
from collections.abc import Callable


def until(true: Callable[[], bool]) -> None:
    """Return as soon as the condition holds; fail when it has not within 10 seconds."""
    deadline_s = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline_s
        time.sleep(0.001)
