"""`measure(config)` runs some real steps of a training, and says what all of it will take."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from hubctl.base_models import FetchBase
from hubctl.cpu import tune_cpu
from train.config import TrainConfig
from train.events import Event, Planned, Preparing, StepDone
from train.prepare import open_training, prepare
from train.subject import SubjectData

MEASURED_STEPS = 4
"""Steps that are run to see what a training takes; the first is left out, which allocates and warms up."""


def measure(config: TrainConfig, *, fetch_base: FetchBase | None = None) -> Iterator[Event]:
    """Run some real steps of a training, and say what all of it will take; nothing is written.

    Where the device runs out of memory, the steps are tried with fewer images at once. Of several processes
    one is measured: the others do the same at the same time.

    Raises:
        HubctlError: as `train`; an InputError when not even one image fits.
    """
    base, data, plan = prepare(config, fetch_base)
    yield Preparing(stage="loading torch")
    tune_cpu()
    from train.devices import peak_memory_bytes, quiet_libraries

    quiet_libraries()
    from train.loop import run_steps

    yield Preparing(stage=f"loading {base.id}, encoding the data")
    accelerator, task, state = open_training(config, plan, base, data, measuring=True)
    yield Preparing(stage="measuring some steps")
    tried = dataclasses.replace(plan, steps=MEASURED_STEPS, processes=1)
    done = []
    for event in run_steps(task, config, tried, accelerator, state):
        if isinstance(event, StepDone):
            done.append(event)
        else:
            yield event
    seconds = [1 / event.steps_per_s for event in done]
    # `steps_per_s` is a mean over the steps so far: without the first step's part of it.
    warm_s = (seconds[-1] * len(seconds) - seconds[0]) / max(1, len(seconds) - 1) if seconds else float("nan")
    taken, there = peak_memory_bytes(accelerator.device)
    trained = sum(p.numel() for p in task.module.parameters() if p.requires_grad)
    fits = state.progress.micro_batch
    yield Planned(
        base=base.id,
        device=str(accelerator.device),
        steps=plan.steps,
        batch_size=fits,
        accumulation=tried.images_a_step // fits,
        processes=plan.processes,
        resolution_px=plan.resolution_px,
        trainable_parameters=trained,
        adapter_bytes=trained * 4,
        peak_memory_bytes=taken,
        memory_bytes=there,
        steps_per_s=1 / warm_s,
        duration_s=plan.steps * warm_s,
        class_images_to_draw=data.classes.to_draw if isinstance(data, SubjectData) else 0,
        changes=()
        if fits == plan.batch_size
        else (f"--batch-size {fits}", f"--accumulate {tried.images_a_step // fits}"),
    )
