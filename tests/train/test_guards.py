from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.guards import ROLLBACKS, SKIPS, Verdict, judge_step, split


@pytest.mark.parametrize(
    ("finite", "bad_in_a_row", "rollbacks", "verdict"),
    [
        (True, 0, 0, Verdict.GO_ON),
        (True, 2, 3, Verdict.GO_ON),
        (False, 0, 0, Verdict.SKIP),
        (False, SKIPS - 2, 0, Verdict.SKIP),
        (False, SKIPS - 1, 0, Verdict.ROLL_BACK),
        (False, SKIPS - 1, ROLLBACKS - 1, Verdict.ROLL_BACK),
        (False, SKIPS - 1, ROLLBACKS, Verdict.GIVE_UP),
        (False, 0, ROLLBACKS, Verdict.SKIP),
    ],
)
def test_what_follows_a_step(finite: bool, bad_in_a_row: int, rollbacks: int, verdict: Verdict) -> None:
    assert judge_step(finite=finite, bad_in_a_row=bad_in_a_row, rollbacks=rollbacks) is verdict


@given(st.lists(st.integers(0, 99), min_size=1).map(tuple), st.integers(1, 20))
def test_parts_hold_everything_in_order(indices: tuple[int, ...], micro_batch: int) -> None:
    parts = split(indices, micro_batch)
    assert tuple(index for part in parts for index in part) == indices
    assert all(len(part) == micro_batch for part in parts[:-1])
    assert 1 <= len(parts[-1]) <= micro_batch
