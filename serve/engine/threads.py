"""How many threads compute: all cores in the owner thread, one core in every other.

torch computes on a CPU with OpenMP, whose threads meet after each operation. libgomp (of GCC 12) lets them
wait for each other awake only as long as the process has no more of its threads than there are cores; each
thread that has ever computed with several keeps a team of them. So one request's thread that resized an image
with two threads made the owner's forwards 1.6 times as long from then on (two cores, emoji-64: 84 to 136 ms).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def compute_with(threads: int) -> int:
    """Let the calling thread compute with so many threads from now on; returns how many it had."""
    # Asked first: a thread that has not been asked takes, at its first operation, what any thread set last.
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    return before


@contextmanager
def one_core() -> Iterator[None]:
    """Let the calling thread compute alone while the block runs."""
    before = compute_with(1)
    try:
        yield
    finally:
        compute_with(before)
