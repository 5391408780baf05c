"""What one registry allows: sizes and rates. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hubctl.errors import InputError

MIN_PART_BYTES = 64 * 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What whoever runs a registry decides about it."""

    part_bytes: int = 512 * 1024 * 1024
    """Larger files are sent in parts of this size, by clients without Xet that can."""

    requests: int | None = None
    """Requests per caller and window; None counts nothing. Sending bytes is free: it was asked for before."""

    def __post_init__(self) -> None:
        if self.part_bytes < MIN_PART_BYTES:
            raise InputError(f"parts of {self.part_bytes} bytes are too small: {MIN_PART_BYTES} is the least")
        if self.requests is not None and self.requests < 1:
            raise InputError(f"a rate limit of {self.requests} would let nobody in")


WINDOW_S = 300


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """Whether a request may happen, and what the caller has left."""

    allowed: bool
    remaining: int
    reset_s: int
    """Until the caller may begin to count anew."""


class Windows:
    """Counts requests per caller, from nothing in each window of `WINDOW_S` seconds. One thread at a time."""

    def __init__(self, quota: int) -> None:
        self.quota = quota
        self._window = 0
        self._taken: dict[str, int] = {}

    def take(self, caller: str, now_s: float) -> Verdict:
        """Count a request of `caller` at a moment in seconds, which never goes back."""
        window = int(now_s // WINDOW_S)
        if window != self._window:
            self._window, self._taken = window, {}
        taken = self._taken[caller] = self._taken.get(caller, 0) + 1
        return Verdict(
            allowed=taken <= self.quota,
            remaining=max(self.quota - taken, 0),
            reset_s=math.ceil((window + 1) * WINDOW_S - now_s),
        )
