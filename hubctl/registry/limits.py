"""What one registry allows: sizes and rates. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from hubctl.errors import InputError

MIN_PART_BYTES = 64 * 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What whoever runs a registry decides about it."""

    part_bytes: int = 512 * 1024 * 1024
    """Larger files are sent in parts of this size, by clients without Xet that can."""

    def __post_init__(self) -> None:
        if self.part_bytes < MIN_PART_BYTES:
            raise InputError(f"parts of {self.part_bytes} bytes are too small: {MIN_PART_BYTES} is the least")
