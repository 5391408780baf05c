from __future__ import annotations

import random
import threading
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.bench.measure import Contender, Job, Load, drive, median_load, percentile, poisson_arrivals


@given(values=st.lists(st.floats(0, 100), min_size=1), share=st.floats(0, 1))
def test_a_percentile_is_a_value_that_enough_do_not_exceed(values: list[float], share: float) -> None:
    found = percentile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) - 1e-9
    assert sum(value < found for value in values) <= share * len(values) + 1e-9


@pytest.mark.parametrize(("share", "value"), [(0.0, 1), (0.5, 5), (0.51, 6), (0.99, 10), (1.0, 10)])
def test_percentiles_of_ten(share: float, value: int) -> None:
    assert percentile(range(10, 0, -1), share) == value


def test_poisson_arrivals_come_at_their_rate() -> None:
    times = poisson_arrivals(20_000, 4.0, random.Random(0))
    assert len(times) == 20_000
    assert times[0] == 0
    assert times == sorted(times)
    assert 20_000 / times[-1] == pytest.approx(4.0, rel=0.05)


def test_jobs_that_are_there_at_once_run_at_once() -> None:
    together = threading.Barrier(4)  # breaks unless all four are under way at the same time

    def one(_: Job) -> None:
        together.wait(10)

    load = drive(Contender(name="threads", one=one), [Job(adapter=i, seed=i) for i in range(4)])
    assert load.images_per_s > 0
    assert load.p50_s <= load.p99_s


def test_a_batch_serves_all_jobs_in_one_call() -> None:
    seen: list[Sequence[Job]] = []
    jobs = [Job(adapter=None, seed=i) for i in range(3)]
    drive(Contender(name="batch", together=seen.append), jobs)
    assert seen == [jobs]


def test_a_job_that_fails_is_not_measured() -> None:
    def fail(_: Job) -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        drive(Contender(name="broken", one=fail), [Job(adapter=None, seed=0)])


def test_clients_take_turns() -> None:
    seen: list[int | None] = []
    jobs = [Job(adapter=i, seed=i) for i in range(3)]
    drive(Contender(name="threads", one=lambda job: seen.append(job.adapter)), jobs, turns=4)
    assert sorted(seen, key=str) == sorted([0, 1, 2] * 4)
    batches: list[Sequence[Job]] = []
    drive(Contender(name="batch", together=batches.append), jobs, turns=2)
    assert batches == [jobs, jobs]


def test_medians_are_taken_of_each_figure() -> None:
    figures = [(1.0, 30.0, 300.0), (2.0, 10.0, 200.0), (9.0, 20.0, 100.0)]
    loads = [Load(images_per_s=rate, p50_s=half, p99_s=most) for rate, half, most in figures]
    assert median_load(loads) == Load(images_per_s=2.0, p50_s=20.0, p99_s=200.0)
