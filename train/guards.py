"""What to do with a step that went wrong: pure, standard library only."""

from __future__ import annotations

from enum import Enum

SKIPS = 3
"""Bad steps in a row after which the weights themselves are taken to be spoilt."""
ROLLBACKS = 3
"""Rollbacks after which training gives up: each halved the rate, so the rate is not what spoils it."""


class Verdict(Enum):
    """What follows a step."""

    GO_ON = "go on"
    SKIP = "skip"
    ROLL_BACK = "roll back"
    GIVE_UP = "give up"


def judge_step(*, finite: bool, bad_in_a_row: int, rollbacks: int) -> Verdict:
    """One bad step is skipped, several in a row go back to the last good state, and that not for ever.

    Args:
        finite: Loss and gradients were numbers.
        bad_in_a_row: Bad steps just before this one.
        rollbacks: How often training went back already.
    """
    if finite:
        return Verdict.GO_ON
    if bad_in_a_row + 1 < SKIPS:
        return Verdict.SKIP
    return Verdict.ROLL_BACK if rollbacks < ROLLBACKS else Verdict.GIVE_UP


def split(indices: tuple[int, ...], micro_batch: int) -> list[tuple[int, ...]]:
    """One step's examples in parts that fit into memory at once, all but the last `micro_batch` long."""
    return [indices[start : start + micro_batch] for start in range(0, len(indices), micro_batch)]
