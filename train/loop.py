"""The one training loop, for every task: it yields what happened and never prints."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import torch
from accelerate import Accelerator

from hubctl.errors import InputError
from train.config import TrainConfig
from train.events import StepDone
from train.plan import Plan, batches, learning_rate_factor, time_left_s
from train.tasks.task import Task

SPEED_WINDOW = 20
"""Steps over which the speed is averaged."""


def run_steps(task: Task, config: TrainConfig, plan: Plan, accelerator: Accelerator) -> Iterator[StepDone]:
    """Train `task.module` in place, one event for each step.

    The caller may use the module between two steps; that time does not count as training time.

    Raises:
        InputError: the loss stopped being a number.
    """
    module = accelerator.prepare(task.module)
    optimizer = accelerator.prepare(
        torch.optim.AdamW(task.parameter_groups(), lr=plan.learning_rate, weight_decay=config.weight_decay)
    )
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    generator = torch.Generator().manual_seed(config.seed)
    durations_s: list[float] = []
    order = batches(task.images, plan.batch_size, plan.steps, config.seed)
    for step, indices in enumerate(order):
        started_s = time.perf_counter()
        rate = plan.learning_rate * learning_rate_factor(step, plan.steps, plan.warmup_steps)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["rate"]
        module.train()
        with accelerator.autocast():
            loss = task.loss(module, indices, generator)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise InputError(
                f"the loss became {value} in step {step + 1}: training has diverged",
                hint=f"train again with a lower rate: --lr {plan.learning_rate / 4:.0e}",
            )
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(parameters, config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        durations_s = [*durations_s[1 - SPEED_WINDOW :], time.perf_counter() - started_s]
        steps_per_s = len(durations_s) / sum(durations_s)
        yield StepDone(
            step=step + 1,
            steps=plan.steps,
            loss=value,
            learning_rate=rate,
            steps_per_s=steps_per_s,
            eta_s=time_left_s(plan.steps - step - 1, steps_per_s),
        )
    # Takes autocast off the module again, so that it is judged and saved as others will load it.
    accelerator.unwrap_model(module, keep_fp32_wrapper=False)
