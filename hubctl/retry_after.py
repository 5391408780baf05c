"""HTTP's Retry-After: how long an answer asks to wait, read and written as whole seconds."""

from __future__ import annotations

import math


def read_wait_s(header: str | None) -> float | None:
    """The seconds that the header asks for; None where it is missing, or a date."""
    return float(header) if header and header.isdecimal() else None


def wait_header(wait_s: float) -> str:
    """The header for a wait of `wait_s`: never sooner, and at least a second."""
    return str(max(1, math.ceil(wait_s)))
