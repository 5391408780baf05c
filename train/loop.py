"""The one training loop, for every task: it yields what happened and never prints."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from accelerate import Accelerator

from hubctl.errors import DivergedError, InputError
from train.adapt import training_mode
from train.config import TrainConfig
from train.events import Event, StepDone, Warned
from train.guards import Verdict, judge_step, split
from train.optimizers import set_rate
from train.plan import Plan, batches, learning_rate_factor, time_left_s
from train.ranks import Ranks
from train.state import State
from train.tasks.task import Task

SPEED_WINDOW = 20
"""Steps over which the speed is averaged."""
GOOD_STATE_EVERY = 25
"""Steps between two copies of the state to roll back to."""


def run_steps(
    task: Task, config: TrainConfig, plan: Plan, accelerator: Accelerator, state: State
) -> Iterator[Event]:
    """Train `task.module` in place from where `state` is: `StepDone` for each step, or `Warned`.

    Between two events the state is whole: the caller may capture it, and may use the module; that time does
    not count as training time. Of several processes each does its part of every step, and all decide alike.

    Raises:
        DivergedError: there are no numbers to go on with, in spite of smaller rates.
        InputError: not even one image fits into memory, or one of several processes has none left for an
            update.
    """
    ranks = Ranks(accelerator)
    training_mode(state.module)
    good = state.capture()
    durations_s: deque[float] = deque(maxlen=SPEED_WINDOW)
    bad = 0
    while state.progress.step < plan.steps:
        for indices in _order(task, plan, config.seed, state.progress.step):
            started_s = time.perf_counter()
            try:
                loss = _step(task, plan, config, accelerator, ranks, state, indices)
            except _OutOfMemory:
                yield _smaller(state, good)
                break
            durations_s.append(time.perf_counter() - started_s)
            progress = state.progress
            verdict = judge_step(finite=loss is not None, bad_in_a_row=bad, rollbacks=progress.rollbacks)
            if verdict is Verdict.GO_ON and loss is not None:
                bad = 0
                progress.step += 1
                progress.losses.append(loss)
                state.follow()
                yield _done(state, plan, loss, len(durations_s) / sum(durations_s))
                if progress.step % GOOD_STATE_EVERY == 0 and state.is_finite():
                    good = state.capture()
            elif verdict is Verdict.SKIP:
                bad += 1
                progress.step += 1
                blamed = _blame(task, state, ranks, indices)
                yield Warned(message=f"step {progress.step} is skipped: {blamed}")
            elif verdict is Verdict.ROLL_BACK:
                bad = 0
                yield _roll_back(state, good)
                break
            else:
                blamed = _blame(task, state, ranks, indices)
                raise DivergedError(
                    f"training has diverged at step {progress.step + 1}: {blamed}",
                    hint=f"train again with a lower rate: --lr {plan.learning_rate / 16:.0e}",
                )


def _order(task: Task, plan: Plan, seed: int, start: int) -> Iterator[tuple[int, ...]]:
    """The examples of each step from `start` on: the same as if all before had been run."""
    return islice(batches(task.images, plan.images_a_step, plan.steps, seed, task.buckets), start, None)


def _step(
    task: Task,
    plan: Plan,
    config: TrainConfig,
    accelerator: Accelerator,
    ranks: Ranks,
    state: State,
    indices: tuple[int, ...],
) -> float | None:
    """One optimizer step on `indices`; its loss, or None (and nothing changed) where that is no number.

    Raises:
        _OutOfMemory: a process, this one or another, has too little for its part.
    """
    progress = state.progress
    factor = learning_rate_factor(progress.step, plan.steps, plan.warmup_steps, plan.schedule)
    set_rate(state.optimizer, plan.learning_rate * factor * progress.rate_factor, progress.step)
    if not state.module.training:  # after somebody has looked; to ask each of a thousand modules takes 2 ms
        training_mode(state.module)
    state.optimizer.zero_grad()
    own, fits = _gradients(task, accelerator, state, ranks.part(indices))
    losses, all_fit = zip(*ranks.exchange(own, fits), strict=True)
    if not all(all_fit):
        raise _OutOfMemory
    total = sum(losses) / ranks.count
    if not math.isfinite(total):
        return None
    try:
        updated = _update(config, accelerator, ranks, state)
    except RuntimeError as error:
        if not _of_memory(error):
            raise
        if ranks.count > 1:  # the others may have updated, and do not ask again until the next step
            raise InputError(
                f"process {ranks.rank} of {ranks.count} has no memory left to update the adapter in step "
                f"{progress.step + 1}",
                hint="free its device, then --resume; or train anew with a lower --batch-size or --rank",
            ) from error
        raise _OutOfMemory from error
    return total if updated else None


def _update(config: TrainConfig, accelerator: Accelerator, ranks: Ranks, state: State) -> bool:
    """Change the adapter by all processes' gradients; nothing, and False, where those are no numbers."""
    parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
    ranks.average_gradients(parameters)
    norm = accelerator.clip_grad_norm_(parameters, config.max_grad_norm)
    # In fp16 the scaler looks for such gradients itself, and needs to see them to lower its scale.
    if accelerator.scaler is None and norm is not None and not math.isfinite(float(norm)):
        return False
    state.optimizer.step()
    return True


def _gradients(
    task: Task, accelerator: Accelerator, state: State, indices: tuple[int, ...]
) -> tuple[float, bool]:
    """Forward and backward over this process's examples: the mean loss, and whether they fit into memory.

    A loss that is no number ends it early.
    """
    total = 0.0
    try:
        for part in split(indices, state.progress.micro_batch):
            with accelerator.autocast():
                loss = task.loss(state.module, part, state.generator) * (len(part) / len(indices))
            total += float(loss.detach())
            if not math.isfinite(total):
                break
            accelerator.backward(loss)
    except RuntimeError as error:
        if not _of_memory(error):
            raise
        return total, False
    return total, True


def _done(state: State, plan: Plan, loss: float, steps_per_s: float) -> StepDone:
    step = state.progress.step
    return StepDone(
        step=step,
        steps=plan.steps,
        loss=loss,
        learning_rate=state.optimizer.param_groups[0]["lr"],
        steps_per_s=steps_per_s,
        eta_s=time_left_s(plan.steps - step, steps_per_s),
    )


def _roll_back(state: State, good: dict[str, Any]) -> Warned:
    rollbacks, factor, reached = state.progress.rollbacks, state.progress.rate_factor, state.progress.step + 1
    state.restore(good)
    state.progress.rollbacks, state.progress.rate_factor = rollbacks + 1, factor / 2
    return Warned(
        message=f"the loss is no number any more at step {reached}: back to step {state.progress.step}, "
        f"on with {factor / 2:g} of the rate"
    )


def _blame(task: Task, state: State, ranks: Ranks, indices: tuple[int, ...]) -> str:
    """Which images make a loss that is no number, each asked alone."""
    state.module.eval()
    with torch.no_grad():
        own = {
            index: float(task.loss(state.module, (index,), torch.Generator().manual_seed(0)))
            for index in dict.fromkeys(ranks.part(indices))
        }
    losses = {index: loss for found in ranks.gather(own) for index, loss in found.items()}
    guilty = [task.names[index] for index, loss in losses.items() if not math.isfinite(loss)]
    if not guilty:
        return "the gradient of its images is no number"
    if len(guilty) == len(losses):
        return "the loss of all its images is no number"
    return f"the loss of {', '.join(guilty[:3])} is no number"


# -- memory --------------------------------------------------------------------------------------


class _OutOfMemory(Exception):
    """A step's part does not fit into the memory of some process; all hear of it, and nothing is updated."""


def _of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _smaller(state: State, good: dict[str, Any]) -> Warned:
    """Halve what is in memory at once, and go back to the last good state: the step is half done."""
    micro_batch = state.progress.micro_batch
    if micro_batch == 1:
        raise InputError(
            "not even one image fits into the device's memory",
            hint="train at a lower --resolution, with --gradient-checkpointing, or on a larger device",
        )
    state.restore(good)
    state.progress.micro_batch = micro_batch // 2
    state.optimizer.zero_grad()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return Warned(
        message=f"out of memory with {micro_batch} images at once: on from step {state.progress.step} with "
        f"{micro_batch // 2}, in twice as many parts a step"
    )
