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
    """Serves jobs that are all there at the start, as one batch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """How a contender did under one load."""

    images_per_s: float
    p50_s: float
    p99_s: float


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


def drive(contender: Contender, jobs: Sequence[Job], arrivals_s: Sequence[float] | None = None) -> Load:
    """Send jobs at their arrival times (all at once without) and wait for all.

    Raises whatever a job raised first.
    """
    started_s = time.perf_counter()
    if contender.together is not None and arrivals_s is None:
        contender.together(jobs)
        took = [time.perf_counter() - started_s] * len(jobs)
    else:
        took = _threads(contender, jobs, arrivals_s or [0.0] * len(jobs), started_s)
    makespan = time.perf_counter() - started_s
    return Load(images_per_s=len(jobs) / makespan, p50_s=percentile(took, 0.5), p99_s=percentile(took, 0.99))


def median_load(loads: Sequence[Load]) -> Load:
    """The load with the median throughput."""
    return sorted(loads, key=lambda load: load.images_per_s)[(len(loads) - 1) // 2]


def median_s(work: Callable[[Any], object], inputs: Iterable[Any]) -> float:
    """Median wall time of `work`, done once for each of `inputs`."""
    took = []
    for item in inputs:
        started_s = time.perf_counter()
        work(item)
        took.append(time.perf_counter() - started_s)
    return statistics.median(took)


def _threads(
    contender: Contender, jobs: Sequence[Job], arrivals_s: Sequence[float], started_s: float
) -> list[float]:
    took = [0.0] * len(jobs)
    errors: list[BaseException] = []
    assert contender.one is not None

    def run(index: int, one: Callable[[Job], None]) -> None:
        due_s = started_s + arrivals_s[index]
        time.sleep(max(0.0, due_s - time.perf_counter()))
        try:
            one(jobs[index])
        except BaseException as error:
            errors.append(error)
        took[index] = time.perf_counter() - due_s

    threads = [threading.Thread(target=run, args=(i, contender.one)) for i in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return took
