from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.plan import (
    Plan,
    batches,
    ema_keeps,
    learning_rate_factor,
    make_plan,
    sample_steps,
    smooth,
    time_left_s,
)


@pytest.mark.parametrize(
    ("steps", "every", "expected"),
    [
        (400, 200, (0, 200, 400)),
        (400, 150, (0, 150, 300, 400)),
        (3, 2, (0, 2, 3)),
        (1, 1, (0, 1)),
        (5, 100, (0, 5)),
        (5, 0, ()),
    ],
)
def test_sample_steps(steps: int, every: int, expected: tuple[int, ...]) -> None:
    assert sample_steps(steps, every) == expected


@pytest.mark.parametrize(
    ("step", "steps", "warmup", "expected"),
    [
        (0, 100, 0, 1.0),
        (0, 100, 10, 0.1),
        (9, 100, 10, 1.0),
        (10, 100, 10, 1.0),
        (55, 100, 10, 0.5),
        (99, 100, 10, 0.5 * (1 + math.cos(math.pi * 89 / 90))),
        (0, 1, 1, 1.0),
        (2, 3, 3, 1.0),
    ],
)
def test_learning_rate_factor(step: int, steps: int, warmup: int, expected: float) -> None:
    assert learning_rate_factor(step, steps, warmup) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("schedule", "expected"), [("constant", 1.0), ("linear", 0.25), ("polynomial", 0.0625)]
)
def test_other_schedules_with_a_quarter_left(schedule: str, expected: float) -> None:
    assert learning_rate_factor(85, 110, 10, schedule) == pytest.approx(expected)


def test_the_running_mean_warms_up_as_that_of_diffusers() -> None:
    from diffusers.training_utils import EMAModel

    theirs = EMAModel([], decay=0.9)
    assert [ema_keeps(step, 0.9) for step in range(1, 200)] == [
        pytest.approx(theirs.get_decay(step)) for step in range(1, 200)
    ]


@given(st.integers(1, 500), st.floats(0, 1))
def test_the_rate_rises_once_and_falls_once_and_is_never_zero(steps: int, warmup_fraction: float) -> None:
    warmup = math.ceil(steps * warmup_fraction)
    rates = [learning_rate_factor(step, steps, warmup) for step in range(steps)]
    top = rates.index(max(rates))
    assert all(0 < rate <= 1 for rate in rates)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 30), st.integers(0, 2**63 - 1))
def test_batches_are_full_and_use_every_example_equally(
    examples: int, batch_size: int, steps: int, seed: int
) -> None:
    seen = list(batches(examples, batch_size, steps, seed))
    assert [len(batch) for batch in seen] == [batch_size] * steps
    counts = Counter(index for batch in seen for index in batch)
    assert counts.keys() <= set(range(examples))
    assert max(counts.values()) - min(counts[index] for index in range(examples)) <= 1
    assert seen == list(batches(examples, batch_size, steps, seed))


def test_a_grid_shows_the_first_and_the_last_look() -> None:
    from train.tasks.grid import MAX_LOOKS, chosen_looks

    assert chosen_looks(3) == [0, 1, 2]
    many = chosen_looks(100)
    assert (many[0], many[-1], len(set(many))) == (0, 99, MAX_LOOKS)


def test_another_seed_is_another_order() -> None:
    assert list(batches(50, 10, 5, 0)) != list(batches(50, 10, 5, 1))


def plan(**changes: object) -> Plan:
    settings: dict[str, object] = {
        "task": "text-to-image",
        "native_px": 64,
        "steps": None,
        "batch_size": None,
        "learning_rate": None,
        "resolution": None,
        "warmup_fraction": 0.05,
        "rank": 16,
        "alpha": None,
        "sample_every": None,
    }
    return make_plan(**(settings | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("task", ["text-to-image", "dreambooth", "segmentation"])
def test_a_large_base_takes_a_lower_rate_than_a_tiny_one(task: str) -> None:
    assert plan(task=task, native_px=512).learning_rate < plan(task=task, native_px=64).learning_rate


@pytest.mark.parametrize(("steps", "every"), [(4, 5), (60, 5), (100, 5), (200, 10), (1500, 75)])
def test_looks_are_twenty_but_never_every_step(steps: int, every: int) -> None:
    assert plan(steps=steps).watch_every == every


def test_what_the_user_says_stands() -> None:
    made = plan(steps=7, batch_size=3, learning_rate=0.5, resolution=32, rank=8, alpha=2.0, sample_every=5)
    assert made == Plan(
        steps=7,
        batch_size=3,
        learning_rate=0.5,
        warmup_steps=1,
        resolution_px=32,
        rank=8,
        alpha=2.0,
        sample_steps=(0, 5, 7),
        checkpoint_every=1,
    )


def test_alpha_is_the_rank_and_the_resolution_is_the_bases() -> None:
    made = plan(rank=4, native_px=96)
    assert (made.alpha, made.resolution_px) == (4.0, 96)


@pytest.mark.parametrize(("left", "speed", "expected"), [(10, 2.0, 5.0), (0, 2.0, 0.0), (3, 0.0, math.inf)])
def test_time_left(left: int, speed: float, expected: float) -> None:
    assert time_left_s(left, speed) == expected


@given(st.lists(st.floats(-1e6, 1e6), max_size=50), st.integers(1, 60))
def test_smoothing_is_the_mean_of_what_was_seen(values: list[float], window: int) -> None:
    expected = [sum(values[max(0, i + 1 - window) : i + 1]) / min(i + 1, window) for i in range(len(values))]
    assert smooth(values, window) == pytest.approx(expected, abs=1e-6)
