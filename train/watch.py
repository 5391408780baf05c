"""Watching for overfitting: which state is the best, and when to stop; pure, standard library only.

A look is the loss on images that are trained on and on images that are held out, both with the same noise
each time, so that looks differ by what was learnt alone.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

PATIENCE = 5
"""Looks without a better one after which training stops."""
SMOOTHING = 0.5
"""Weight of the newest look in the running mean: single ones go up and down by themselves."""
SMALL_SET = 20
"""Images below which none are held out unasked: a tenth of them says little, and training misses them."""
HOLD_OUT = 0.1
MOST = 16
"""Images held out unasked at most: looking at more costs more than it tells."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """The losses after `step`."""

    step: int
    train: float
    held_out: float


def smoothed(looks: Sequence[Look]) -> list[Look]:
    """Running means of both losses, the newest look counting `SMOOTHING`."""
    means: list[Look] = []
    for look in looks:
        if not means:
            means.append(look)
            continue
        last = means[-1]
        means.append(
            Look(
                step=look.step,
                train=SMOOTHING * look.train + (1 - SMOOTHING) * last.train,
                held_out=SMOOTHING * look.held_out + (1 - SMOOTHING) * last.held_out,
            )
        )
    return means


def best_look(looks: Sequence[Look]) -> int:
    """Place of the look with the lowest smoothed loss on held-out images, the first of equals.

    Raises:
        ValueError: there are no looks.
    """
    means = smoothed(looks)
    return min(range(len(means)), key=lambda place: means[place].held_out)


def should_stop(looks: Sequence[Look]) -> bool:
    """Whether the best look is `PATIENCE` looks ago, while the loss on training images went on falling.

    When both rise, training is unstable rather than overfitting, and stopping is not this rule's business.
    """
    if len(looks) <= PATIENCE:
        return False
    best, means = best_look(looks), smoothed(looks)
    return len(looks) - 1 - best >= PATIENCE and means[-1].train < means[best].train


def held_out(images: int, fraction: float | None, seed: int) -> tuple[int, ...]:
    """Which of the images are held out to watch: a tenth, `MOST` at most, and none of a small set.

    Of a fraction that is asked for at least one, and never all.
    """
    most = images - 1
    if fraction is None:
        fraction, most = (HOLD_OUT if images >= SMALL_SET else 0.0), MOST
    count = min(max(1, round(images * fraction)), most) if fraction > 0 else 0
    return tuple(sorted(random.Random(seed).sample(range(images), count)))
