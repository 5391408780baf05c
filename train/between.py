"""What comes between two steps of a training: samples, looks, checkpoints, and reasons to end."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hubctl.base_models import BaseModel
from train.config import TrainConfig
from train.events import Checkpointed, Event, Sampled, StepDone, Stopped, Warned, Watched
from train.plan import Plan
from train.prepare import Data
from train.watch import Look, best_look, should_stop
from train.work import Work

if TYPE_CHECKING:
    from accelerate import Accelerator

    from train.ranks import Ranks
    from train.state import Clock, State
    from train.tasks.task import Task

Stop = Callable[[], bool]
"""Asked between two steps: whether to save the state and end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Opened:
    """A training whose steps can begin."""

    config: TrainConfig
    plan: Plan
    base: BaseModel
    data: Data
    facts: dict[str, Any]
    """Its identity."""
    accelerator: Accelerator
    ranks: Ranks
    task: Task
    state: State
    clock: Clock


def looked_after(steps: Iterator[Event], opened: Opened, work: Work | None, stop: Stop) -> Iterator[Event]:
    """The steps, and what comes between them; `Stopped` ends a training that was asked to stop.

    The first process, which has the folder `work`, looks, writes and decides, while the others wait.
    """
    from train.state import write_state

    plan, task, state, ranks = opened.plan, opened.task, opened.state, opened.ranks
    for event in steps:
        yield event
        if not isinstance(event, StepDone):
            continue
        worse = False
        if work:
            if event.step in plan.sample_steps:
                with state.averaged():
                    picture = task.sample(event.step, work.samples)
                yield Sampled(path=picture, step=event.step)
            with state.averaged():
                watched = _watch(task, plan, state)
            if watched:
                yield watched
                worse = opened.config.auto_stop is not False and should_stop(looks(state))
        stopped, worse = map(bool, ranks.exchange(stop() and event.step < plan.steps, worse)[0])
        # The finite are kept: one update can spoil weights whose loss was still a number.
        if (stopped or event.step in plan.checkpoint_steps) and state.is_finite():
            state.progress.elapsed_s = opened.clock.elapsed_s()
            captured = state.capture_all(ranks)
            if work:
                write_state(work.checkpoint, captured, opened.facts)
                yield Checkpointed(path=work.checkpoint, step=event.step)
        if stopped and work:
            yield Stopped(path=work.folder, step=event.step, steps=plan.steps)
        elif worse and work:
            seen = looks(state)
            yield Warned(
                message=f"stopped at step {event.step} of {plan.steps}: held-out images have got worse since "
                f"step {seen[best_look(seen)].step}, which is kept (--no-auto-stop goes on)"
            )
        if stopped or worse:
            return


def looks(state: State) -> list[Look]:
    """All looks at the held-out images so far."""
    return [Look(step=step, train=train, held_out=unseen) for step, train, unseen in state.progress.looks]


def take_best(state: State) -> int:
    """Go back to the best state that was looked at, else take the mean; the step whose state it is now."""
    seen = looks(state)
    if not seen:
        state.take_mean()
        return state.progress.step
    state.take_best()
    return seen[best_look(seen)].step


def _watch(task: Task, plan: Plan, state: State) -> Watched | None:
    """Look at the held-out images where it is time, and keep the state if it is the best so far."""
    progress = state.progress
    if progress.step % plan.watch_every and progress.step != plan.steps:
        return None
    losses = task.watch()
    # One step can spoil weights whose loss was still a number; what then follows is for the loop to decide.
    if losses is None or not all(map(math.isfinite, losses)):
        return None
    progress.looks.append((progress.step, *losses))
    seen = looks(state)
    best = best_look(seen) == len(seen) - 1
    if best:
        state.keep_best()
    return Watched(step=progress.step, train_loss=losses[0], held_out_loss=losses[1], best=best)
