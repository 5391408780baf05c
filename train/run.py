"""The one door to training: `train(config)` yields events and, at the end, leaves one adapter folder.

Everything that can be wrong with the request is found before a model is loaded; the folder appears
whole or not at all.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any

from hubctl.adapter.gate import gate
from hubctl.adapter.package import new_folder
from hubctl.base_models import BaseModel, FetchBase
from hubctl.cpu import tune_cpu
from train.base_size import native_px
from train.config import TrainConfig
from train.dataset import SubjectData
from train.events import (
    Checkpointed,
    Evaluated,
    Event,
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
from train.masks import MaskData
from train.plan import Plan
from train.prepare import Data, open_training, prepare
from train.recipe import Recipe, identity, recipe_settings, write_recipe
from train.track import require_trackers, tracked
from train.watch import Look, best_look, should_stop
from train.work import Work, refuse_other_training, work_folder

if TYPE_CHECKING:
    from train.state import Clock, State
    from train.tasks.task import Task

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
    require_trackers(config.track)
    base, data, plan = prepare(config, fetch_base)
    held = work_folder(
        config.output, overwrite=config.overwrite, resume=config.resume, restart=config.restart
    )
    with held as work:
        yield from tracked(_train_in(work, config, plan, base, data, stop), config)


def _train_in(
    work: Work, config: TrainConfig, plan: Plan, base: BaseModel, data: Data, stop: Stop
) -> Generator[Event, None, None]:
    yield Preparing(stage="loading torch")
    tune_cpu()
    # Only now: torch and its friends take seconds to import, and read the environment once.
    from train.devices import quiet_libraries

    quiet_libraries()
    from train import export, loop
    from train.state import Clock, read_state

    facts = identity(config, plan, base, data.sha256)
    captured = None
    if config.resume:
        captured, then = read_state(work.checkpoint)
        refuse_other_training(facts, then)
    yield Preparing(stage=f"loading {base.id}, encoding the data")
    accelerator, task, state = open_training(config, plan, base, data)
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
    steps = loop.run_steps(task, config, plan, accelerator, state)
    for event in _looked_after(steps, work, config, plan, task, state, facts, clock, stop):
        yield event
        if isinstance(event, Stopped):
            return
    # Takes autocast off the module again, so that it is judged and saved as others will load it.
    accelerator.unwrap_model(state.module, keep_fp32_wrapper=False)
    kept = _take_best(state)
    if plan.sample_steps and kept != state.progress.step:
        # The pictures in the card show what is saved.
        yield Sampled(path=task.sample(kept, work.samples), step=kept)
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
        looks=_looks(state),
        evaluation=evaluation,
        prompts=task.prompts,
        duration_s=clock.elapsed_s(),
        device=str(accelerator.device),
    )
    watched = 0 if isinstance(data, SubjectData) else len(data.watched)
    recipe = Recipe(
        settings=recipe_settings(config, plan),
        data={"sha256": data.sha256, "images": task.images + task.held_out_images + watched},
        base={"id": base.id, "commit": base.commit, "sha256": base.sha256},
        versions=facts["versions"],
    )
    with new_folder(config.output, overwrite=config.overwrite) as folder:
        task.save(folder)
        for weights in folder.glob("*.safetensors"):
            export.settle_header(weights)
        if plan.sample_steps:
            shutil.copytree(work.samples, folder / export.SAMPLES, ignore=shutil.ignore_patterns("looks"))
        export.write_papers(folder, config.output.resolve().name, outcome)
        write_recipe(folder, recipe)
        # The same gate as before push and in the server: what we made must pass it.
        gate(folder, base)
        yield Preparing(stage="loading what was saved into a fresh base")
        yield Verified(difference=task.verify(folder))
    work.finished()
    saved = sum(weights.stat().st_size for weights in config.output.glob("*.safetensors"))
    yield Saved(path=config.output, weights_bytes=saved)


def _looked_after(
    steps: Iterator[Event],
    work: Work,
    config: TrainConfig,
    plan: Plan,
    task: Task,
    state: State,
    facts: dict[str, Any],
    clock: Clock,
    stop: Stop,
) -> Iterator[Event]:
    """The steps, with what comes between two of them: samples, looks, checkpoints, and reasons to end.

    `Stopped` is the last event of a training that was asked to stop.
    """
    from train.state import write_state

    for event in steps:
        yield event
        if not isinstance(event, StepDone):
            continue
        if event.step in plan.sample_steps:
            with state.averaged():
                picture = task.sample(event.step, work.samples)
            yield Sampled(path=picture, step=event.step)
        with state.averaged():
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
        looks = _looks(state)
        if watched and config.auto_stop is not False and should_stop(looks):
            yield Warned(
                message=f"stopped at step {event.step} of {plan.steps}: held-out images have got worse since "
                f"step {looks[best_look(looks)].step}, which is kept (--no-auto-stop goes on)"
            )
            return


def _looks(state: State) -> list[Look]:
    return [Look(step=step, train=train, held_out=unseen) for step, train, unseen in state.progress.looks]


def _take_best(state: State) -> int:
    """Go back to the best state that was looked at, else take the mean; the step whose state it is now."""
    looks = _looks(state)
    if not looks:
        state.take_mean()
        return state.progress.step
    state.take_best()
    return looks[best_look(looks)].step


def _watch(task: Task, plan: Plan, state: State) -> Watched | None:
    """Look at the held-out images where it is time, and keep the state if it is the best so far."""
    progress = state.progress
    if progress.step % plan.watch_every and progress.step != plan.steps:
        return None
    losses = task.watch()
    if losses is None:
        return None
    progress.looks.append((progress.step, *losses))
    looks = _looks(state)
    best = best_look(looks) == len(looks) - 1
    if best:
        state.keep_best()
    return Watched(step=progress.step, train_loss=losses[0], held_out_loss=losses[1], best=best)
