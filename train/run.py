"""The one door to training: `train(config)` yields events and, at the end, leaves one adapter folder.

Everything that can be wrong with the request is found before a model is loaded; the folder appears
whole or not at all.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, TypeVar

from hubctl.adapter.gate import gate
from hubctl.adapter.package import new_folder
from hubctl.base_models import BaseModel, FetchBase, locate_base
from hubctl.cpu import tune_cpu
from hubctl.errors import DataError, InputError
from train.base_size import native_px
from train.config import TrainConfig
from train.dataset import (
    CaptionData,
    MaskData,
    SubjectData,
    read_captions,
    read_masks,
    read_subject,
)
from train.events import (
    Checkpointed,
    Evaluated,
    Event,
    Planned,
    Preparing,
    Resumed,
    Sampled,
    Saved,
    Started,
    StepDone,
    Stopped,
    Verified,
    Warned,
    Watched,
)
from train.plan import Plan, make_plan
from train.recipe import Recipe, identity, recipe_settings, write_recipe
from train.watch import Look, best_look, held_out, should_stop
from train.work import Work, refuse_other_training, work_folder

if TYPE_CHECKING:
    from accelerate import Accelerator

    from train.state import State
    from train.tasks.task import Setup, Task

T = TypeVar("T")
Data = CaptionData | MaskData | SubjectData

HUB_TASKS = {
    "text-to-image": "text-to-image",
    "dreambooth": "text-to-image",
    "segmentation": "image-segmentation",
}
"""The task, as the Hub names it, that a base must have."""

TRAINABLE_DENOISERS = ("sd1", "sd2", "sdxl", "sd3", "flux")
"""Families for text-to-image; every segmentation model that hubctl knows is trained."""


Stop = Callable[[], bool]
"""Asked between two steps: whether to save the state and end."""


def train(
    config: TrainConfig, *, fetch_base: FetchBase | None = None, stop: Stop = lambda: False
) -> Generator[Event, None, None]:
    """Train one adapter; `fetch_base` brings bases that are neither embedded nor a folder.

    When `stop` answers yes, the last event is `Stopped`, and the same call with `resume` goes on as if
    nothing had happened. Closing the iterator early leaves what the last checkpoint holds, or nothing.

    Raises:
        HubctlError: of the class that fits the fault: the base, the data, the output folder.
    """
    base = locate_base(config.base, fetch=fetch_base)
    _check_task(config, base)
    data = _hold_out(_read_data(config), config)
    plan = _plan(config, base)
    held = work_folder(
        config.output, overwrite=config.overwrite, resume=config.resume, restart=config.restart
    )
    with held as work:
        yield from _train_in(work, config, plan, base, data, stop)


def _train_in(
    work: Work, config: TrainConfig, plan: Plan, base: BaseModel, data: Data, stop: Stop
) -> Iterator[Event]:
    yield Preparing(stage="loading torch")
    tune_cpu()
    # Only now: torch and its friends take seconds to import, and read the environment once.
    from train.devices import quiet_libraries

    quiet_libraries()
    from train import export, loop
    from train.state import Clock, read_state, write_state

    facts = identity(config, plan, base, data.sha256)
    captured = None
    if config.resume:
        captured, then = read_state(work.checkpoint)
        refuse_other_training(facts, then)
    yield Preparing(stage=f"loading {base.id}, encoding the data")
    accelerator, task, state = _open(config, plan, base, data)
    if captured:
        state.restore(captured)
    clock = Clock(state.progress.elapsed_s)
    trainable = sum(p.numel() for p in task.module.parameters() if p.requires_grad)
    yield Started(
        task=config.task,
        base=base.id,
        steps=plan.steps,
        images=task.images,
        held_out_images=task.held_out_images,
        batch_size=plan.batch_size,
        learning_rate=plan.learning_rate,
        resolution_px=plan.resolution_px,
        rank=plan.rank,
        alpha=plan.alpha,
        trainable_parameters=trainable,
        device=str(accelerator.device),
    )
    if isinstance(data, MaskData) and plan.resolution_px != native_px(base.path):
        yield Warned(
            message=f"trained at {plan.resolution_px} px, but {base.id} is served at its own "
            f"{native_px(base.path)} px: expect worse masks than the figures say"
        )
    if captured:
        yield Resumed(step=state.progress.step)
    elif plan.sample_steps:
        yield Sampled(path=task.sample(0, work.samples), step=0)
    for event in loop.run_steps(task, config, plan, accelerator, state):
        yield event
        if not isinstance(event, StepDone):
            continue
        if event.step in plan.sample_steps:
            yield Sampled(path=task.sample(event.step, work.samples), step=event.step)
        watched = _watch(task, plan, state)
        if watched:
            yield watched
        stopped = stop() and event.step < plan.steps
        # The finite are kept: one update can spoil weights whose loss was still a number.
        if (stopped or event.step in plan.checkpoint_steps) and state.is_finite():
            state.progress.elapsed_s = clock.elapsed_s()
            write_state(work.checkpoint, state.capture(), facts)
            yield Checkpointed(path=work.checkpoint, step=event.step)
        if stopped:
            yield Stopped(path=work.folder, step=event.step, steps=plan.steps)
            return
        looks = [Look(step=step, train=train, held_out=out) for step, train, out in state.progress.looks]
        if watched and config.auto_stop is not False and should_stop(looks):
            yield Warned(
                message=f"stopped at step {event.step} of {plan.steps}: held-out images have got worse since "
                f"step {looks[best_look(looks)].step}, which is kept (--no-auto-stop goes on)"
            )
            break
    # Takes autocast off the module again, so that it is judged and saved as others will load it.
    accelerator.unwrap_model(state.module, keep_fp32_wrapper=False)
    state.take_best()
    yield Preparing(stage="judging the adapter")
    evaluation = task.evaluate()
    yield Evaluated(metrics=evaluation.metrics, split=evaluation.split)
    outcome = export.Outcome(
        config=config,
        plan=plan,
        base=base,
        images=task.images,
        held_out_images=task.held_out_images,
        data_sha256=data.sha256,
        labels=data.labels if isinstance(data, MaskData) else {},
        losses=state.progress.losses,
        looks=[Look(step=step, train=train, held_out=out) for step, train, out in state.progress.looks],
        evaluation=evaluation,
        prompts=task.prompts,
        duration_s=clock.elapsed_s(),
        device=str(accelerator.device),
    )
    with new_folder(config.output, overwrite=config.overwrite) as folder:
        task.save(folder)
        export.settle_header(next(folder.glob("*.safetensors")))
        if plan.sample_steps:
            shutil.copytree(work.samples, folder / export.SAMPLES, ignore=shutil.ignore_patterns("looks"))
        export.write_papers(folder, config.output.resolve().name, outcome)
        write_recipe(
            folder,
            Recipe(
                settings=recipe_settings(config, plan),
                data={"sha256": data.sha256, "images": task.images + task.held_out_images},
                base={"id": base.id, "commit": base.commit, "sha256": base.sha256},
                versions=facts["versions"],
            ),
        )
        # The same gate as before push and in the server: what we made must pass it.
        gate(folder, base)
        yield Preparing(stage="loading what was saved into a fresh base")
        yield Verified(difference=task.verify(folder))
    work.finished()
    weights = next(config.output.glob("*.safetensors"))
    yield Saved(path=config.output, weights_bytes=weights.stat().st_size)


MEASURED_STEPS = 4
"""Steps that are run to see what a training takes; the first is left out, which allocates and warms up."""


def measure(config: TrainConfig, *, fetch_base: FetchBase | None = None) -> Iterator[Event]:
    """Run some real steps of a training, and say what all of it will take; nothing is written.

    Where the device runs out of memory, the steps are tried with fewer images at once.

    Raises:
        HubctlError: as `train`; an InputError when not even one image fits.
    """
    base = locate_base(config.base, fetch=fetch_base)
    _check_task(config, base)
    data = _hold_out(_read_data(config), config)
    plan = _plan(config, base)
    yield Preparing(stage="loading torch")
    tune_cpu()
    from train.devices import peak_memory_bytes, quiet_libraries

    quiet_libraries()
    from train.loop import run_steps

    yield Preparing(stage=f"loading {base.id}, encoding the data")
    accelerator, task, state = _open(config, plan, base, data, measuring=True)
    yield Preparing(stage="measuring some steps")
    tried = dataclasses.replace(plan, steps=MEASURED_STEPS)
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
    given = len(data.class_images) if isinstance(data, SubjectData) else 0
    yield Planned(
        base=base.id,
        device=str(accelerator.device),
        steps=plan.steps,
        batch_size=fits,
        accumulation=plan.images_a_step // fits,
        resolution_px=plan.resolution_px,
        trainable_parameters=trained,
        adapter_bytes=trained * 4,
        peak_memory_bytes=taken,
        memory_bytes=there,
        steps_per_s=1 / warm_s,
        duration_s=plan.steps * warm_s,
        class_images_to_draw=max(0, config.num_class_images - given) if config.class_prompt else 0,
        changes=()
        if fits == plan.batch_size
        else (f"--batch-size {fits}", f"--accumulate {plan.images_a_step // fits}"),
    )


def _open(
    config: TrainConfig, plan: Plan, base: BaseModel, data: Data, *, measuring: bool = False
) -> tuple[Accelerator, Task, State]:
    """Everything loaded and encoded, before the first step."""
    from train.devices import open_accelerator
    from train.optimizers import open_optimizer
    from train.state import State
    from train.tasks.task import Setup

    accelerator, frozen_dtype = open_accelerator(config.mixed_precision)
    setup = Setup(
        config=config,
        plan=plan,
        base=base,
        device=accelerator.device,
        frozen_dtype=frozen_dtype,
        measuring=measuring,
    )
    task = _open_task(setup, data)
    optimizer = open_optimizer(task.parameter_groups(), config, plan)
    return accelerator, task, State(task.module, optimizer, accelerator, plan, config.seed)


def refuse_other_data(recipe: Recipe, config: TrainConfig) -> None:
    """Raise `DataError` unless the configuration's data are what the recipe was made with."""
    sha256 = _read_data(config).sha256
    if sha256 != recipe.data.get("sha256"):
        raise DataError(
            f"{config.data} is not what the adapter was trained on: {recipe.data.get('images')} images "
            f"with the hash {str(recipe.data.get('sha256'))[:12]}..., here {sha256[:12]}...",
            hint="give the original folder, captions and all",
        )


def _hold_out(data: Data, config: TrainConfig) -> Data:
    """The data with some of the training images set aside to watch, unless it is a subject's few."""
    if isinstance(data, SubjectData):
        return data
    chosen = held_out(len(data.train), config.hold_out, config.seed)
    if isinstance(data, CaptionData):
        train, watched = _parted(data.train, chosen)
        return dataclasses.replace(data, train=train, watched=watched)
    pairs, watched_pairs = _parted(data.train, chosen)
    return dataclasses.replace(data, train=pairs, watched=watched_pairs)


def _parted(items: tuple[T, ...], chosen: tuple[int, ...]) -> tuple[tuple[T, ...], tuple[T, ...]]:
    others = tuple(item for place, item in enumerate(items) if place not in chosen)
    return others, tuple(items[place] for place in chosen)


def _watch(task: Task, plan: Plan, state: State) -> Watched | None:
    """Look at the held-out images where it is time, and keep the state if it is the best so far."""
    progress = state.progress
    if progress.step % plan.watch_every and progress.step != plan.steps:
        return None
    losses = task.watch()
    if losses is None:
        return None
    progress.looks.append((progress.step, *losses))
    looks = [Look(step=step, train=train, held_out=out) for step, train, out in progress.looks]
    best = best_look(looks) == len(looks) - 1
    if best:
        state.keep_best()
    return Watched(step=progress.step, train_loss=losses[0], held_out_loss=losses[1], best=best)


def _check_task(config: TrainConfig, base: BaseModel) -> None:
    if base.family.task == HUB_TASKS[config.task]:
        if config.task != "segmentation" and base.family.name not in TRAINABLE_DENOISERS:
            raise InputError(
                f"{base.id} is a {base.family.name} base, which hubctl serves but cannot train yet",
                hint=f"choose a base of the kinds {', '.join(TRAINABLE_DENOISERS)}, e.g. emoji-64",
            )
        return
    fitting = "segmentation" if base.family.task == "image-segmentation" else "text-to-image"
    raise InputError(
        f"{base.id} is a base for {base.family.task}, which cannot learn {config.task}",
        hint=f"hubctl train {fitting} --base {config.base} ..., or name another base",
    )


def _read_data(config: TrainConfig) -> Data:
    if config.task == "segmentation":
        return read_masks(config.data, config.labels)
    if config.task == "dreambooth":
        return read_subject(config.data, config.class_data)
    return read_captions(config.data)


def _plan(config: TrainConfig, base: BaseModel) -> Plan:
    return make_plan(
        task=config.task,
        native_px=native_px(base.path),
        steps=config.steps,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        resolution=config.resolution,
        warmup_fraction=config.warmup_fraction,
        rank=config.rank,
        alpha=config.alpha,
        sample_every=config.sample_every,
        accumulation=config.accumulation,
        schedule=config.schedule,
        checkpoint_every=config.checkpoint_every,
    )


def _open_task(setup: Setup, data: Data) -> Task:
    if isinstance(data, MaskData):
        from train.tasks.segmentation import Segmentation

        return Segmentation(setup, data)
    if isinstance(data, SubjectData):
        from train.tasks.dreambooth import DreamBooth

        return DreamBooth(setup, data)
    from train.tasks.text_to_image import TextToImage

    return TextToImage(setup, data)
