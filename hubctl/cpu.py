"""What makes torch quick on a CPU: settings of OpenMP and of glibc that a process needs from its start."""

from __future__ import annotations

import contextlib
import ctypes

from hubctl.settings import export_defaults

_KEEP_BYTES = 2_000_000_000

CPU_ENVIRONMENT = {
    "GOMP_SPINCOUNT": "10000",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(_KEEP_BYTES),
    "MALLOC_TRIM_THRESHOLD_": str(_KEEP_BYTES),
}
"""For a process that is yet to start.

Threads that wait for each other spin for some 10 us, then sleep. OpenMP's default, to spin on, was 8 %
quicker on two idle cores, and half as quick as soon as another process wanted a core.

glibc keeps freed memory for the next forward, which takes tensors of the same sizes, instead of giving it
back to the system and clearing new pages: that took half of the time of a SegFormer at 512 pixels. Only the
main arena can hold large tensors, so there is no other. The price: memory stays at its highest.
"""

_MALLOPT = {-8: 1, -3: _KEEP_BYTES, -1: _KEEP_BYTES}  # M_ARENA_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD


def tune_cpu() -> None:
    """Set the same for this process, before it imports torch or starts threads, and for its children."""
    export_defaults(**CPU_ENVIRONMENT)
    with contextlib.suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL("libc.so.6")
        for parameter, value in _MALLOPT.items():
            libc.mallopt(parameter, value)
