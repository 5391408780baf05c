"""Training by several one-thread processes on one copy of the weights, without locks.

On a machine shared with other work, threads that wait for each other at every layer get
almost nothing done; processes that never wait use whatever is idle. Each keeps its own
optimiser and applies its step to the shared weights; a step may be one step stale.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import multiprocessing


@dataclass(kw_only=True)
class Clock:
    """Shared progress: steps made by all workers, and the planned wall time."""

    planned_s: float
    started_at_s: float
    steps: Any

    @property
    def spent_s(self) -> float:
        """Wall time of this and earlier runs."""
        return time.time() - self.started_at_s

    @property
    def progress(self) -> float:
        """Share of the planned time, 0..1."""
        return min(1.0, self.spent_s / self.planned_s)

    def ticks(self) -> Iterator[int]:
        """Counts steps until the time is spent; numbers are unique over the workers."""
        parent = multiprocessing.parent_process()
        # A worker outlives a parent that is killed, and would go on overwriting its checkpoint.
        while self.spent_s < self.planned_s and (parent is None or parent.is_alive()):
            with self.steps.get_lock():
                self.steps.value += 1
                step = self.steps.value
            yield int(step)


def run_workers(
    work: Callable[..., None], count: int, *args: Any, planned_s: float, spent_s: float, step: int
) -> Clock:
    """Runs `work(rank, clock, *args)` in `count` processes, or here when it is one, and waits for all.

    Modules among `args` must have been put in shared memory by the caller.
    """
    context = multiprocessing.get_context("spawn")
    clock = Clock(planned_s=planned_s, started_at_s=time.time() - spent_s, steps=context.Value("q", step))
    if count == 1:
        work(0, clock, *args)
        return clock
    processes = [
        context.Process(target=_one_thread, args=(work, rank, clock, *args)) for rank in range(count)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise RuntimeError("a training process failed; its own message is above")
    return clock


def _one_thread(work: Callable[..., None], rank: int, clock: Clock, *args: Any) -> None:
    torch.set_num_threads(1)
    work(rank, clock, *args)
