"""Jobs sent to a contender, all at once or by chance, and how long each took."""

from __future__ import annotations

import math
import random
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One request: which adapter (None is the base alone), and its seed."""

    adapter: int | None
    seed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Contender:
    """One way of serving jobs."""

    name: str
    one: Callable[[Job], None] | None = None
    """Serves one job and blocks until it is done; may be called from many threads at once."""
    together: Callable[[Sequence[Job]], None] | None = None
    """Serves jobs that are all there at once, as one batch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """How a contender did under one load."""

    images_per_s: float
    p50_s: float
    p99_s: float


def median_load(loads: Sequence[Load]) -> Load:
    """The median of each figure."""
    return Load(
        images_per_s=statistics.median(load.images_per_s for load in loads),
        p50_s=statistics.median(load.p50_s for load in loads),
        p99_s=statistics.median(load.p99_s for load in loads),
    )


def poisson_arrivals(count: int, rate: float, rng: random.Random) -> list[float]:
    """Arrival times in seconds of `count` jobs, `rate` of them a second on average; the first at 0."""
    times = [0.0]
    while len(times) < count:
        times.append(times[-1] + rng.expovariate(rate))
    return times[:count]


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` (0 to 1) of the values do not exceed: nearest rank."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def drive(
    contender: Contender, jobs: Sequence[Job], arrivals_s: Sequence[float] | None = None, *, turns: int = 1
) -> Load:
    """Send jobs from one client each and wait for all.

    Args:
        contender: who serves them.
        jobs: one for each client.
        arrivals_s: when each client sends its job; without, all begin at once.
        turns: how often each client sends its job, the next when the last is done.

    Raises whatever a job raised first.
    """
    started_s = time.perf_counter()
    if contender.together is not None and arrivals_s is None:
        took = _batches(contender.together, jobs, turns)
    else:
        took = _threads(contender, jobs, arrivals_s or [0.0] * len(jobs), turns, started_s)
    makespan_s = time.perf_counter() - started_s
    return Load(
        images_per_s=len(took) / makespan_s, p50_s=percentile(took, 0.5), p99_s=percentile(took, 0.99)
    )


def median_s(work: Callable[[Any], object], inputs: Iterable[Any]) -> float:
    """Median wall time of `work`, done once for each of `inputs`."""
    took = []
    for item in inputs:
        started_s = time.perf_counter()
        work(item)
        took.append(time.perf_counter() - started_s)
    return statistics.median(took)


def _batches(together: Callable[[Sequence[Job]], None], jobs: Sequence[Job], turns: int) -> list[float]:
    took = []
    for _ in range(turns):
        started_s = time.perf_counter()
        together(jobs)
        took += [time.perf_counter() - started_s] * len(jobs)
    return took


def _threads(
    contender: Contender, jobs: Sequence[Job], arrivals_s: Sequence[float], turns: int, started_s: float
) -> list[float]:
    took: list[float] = []  # appending is atomic
    errors: list[BaseException] = []
    assert contender.one is not None

    def client(job: Job, due_s: float, one: Callable[[Job], None]) -> None:
        time.sleep(max(0.0, due_s - time.perf_counter()))
        try:
            for _ in range(turns):
                one(job)
                done_s = time.perf_counter()
                took.append(done_s - due_s)
                due_s = done_s
        except BaseException as error:
            errors.append(error)

    threads = [
        threading.Thread(target=client, args=(job, started_s + arrival_s, contender.one))
        for job, arrival_s in zip(jobs, arrivals_s, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return took
