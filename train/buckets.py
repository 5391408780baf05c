"""Shapes to train pictures at that are not square: pure, standard library only."""

from __future__ import annotations

import math
from functools import cache

Size = tuple[int, int]
"""Width and height, in pixels."""


@cache
def bucket_sizes(resolution_px: int) -> tuple[Size, ...]:
    """All shapes for a resolution: about its square's area and never more, sides from half to twice its side.

    Sides are multiples of 64 at 512 px and above (as the buckets of NovelAI, whose idea they are:
    https://github.com/NovelAI/novelai-aspect-ratio-bucketing), of an eighth of the side below.
    """
    step = max(8, min(64, resolution_px // 64 * 8))
    sizes = {(resolution_px, resolution_px)}
    for width in range(resolution_px // 2, 2 * resolution_px + 1, step):
        side = width // step * step
        other = min(2 * resolution_px, resolution_px**2 // side) // step * step if side else 0
        if other >= resolution_px // 2:
            sizes |= {(side, other), (other, side)}
    return tuple(sorted(sizes))


def nearest_bucket(width: int, height: int, resolution_px: int) -> Size:
    """The shape whose aspect is nearest to that of a picture; of equals the largest."""
    aspect = math.log(width / height)
    return min(
        bucket_sizes(resolution_px),
        key=lambda size: (round(abs(math.log(size[0] / size[1]) - aspect), 9), -size[0] * size[1]),
    )
