"""The one door to training: `train(config)` yields events and, at the end, leaves one adapter folder.

Everything that can be wrong with the request is found before a model is loaded; the folder appears
whole or not at all.
"""

from __future__ import annotations

import shutil
from collections.abc import Generator, Iterator

from hubctl.adapter.gate import gate
from hubctl.adapter.package import new_folder
from hubctl.base_models import BaseModel, FetchBase
from hubctl.cpu import tune_cpu
from hubctl.errors import DivergedError, InputError
from hubctl.settings import place
from train.between import Opened, Stop, looked_after, looks, take_best
from train.config import TrainConfig
from train.events import (
    Evaluated,
    Event,
    Preparing,
    Resumed,
    Sampled,
    Saved,
    Started,
    Stopped,
    Verified,
    Warned,
)
from train.masks import MaskData
from train.plan import Plan
from train.prepare import Data, data_hashes, open_training, prepare
from train.processes import train_together
from train.recipe import Recipe, identity, recipe_settings, write_recipe
from train.track import require_trackers, tracked
from train.work import Work, refuse_other_training, work_folder


def train(
    config: TrainConfig, *, fetch_base: FetchBase | None = None, stop: Stop = lambda: False
) -> Generator[Event, None, None]:
    """Train one adapter; `fetch_base` brings bases that are neither embedded nor a folder.

    More than one process is started here, unless this is one of them already (`accelerate launch`): then the
    first does the same as a process alone, the others their part of each step, and events that say so. A
    script that calls this with more than one does so under `if __name__ == "__main__":`, since each process
    imports it.

    When `stop` answers yes, the last event is `Stopped`, and the same call with `resume` goes on as if
    nothing had happened. Closing the iterator early leaves what the last checkpoint holds, or nothing.

    Raises:
        HubctlError: of the class that fits the fault: the base, the data, the output folder.
    """
    here = place()
    if here.count not in (1, config.processes):
        raise InputError(
            f"{here.count} processes were started for a training of {config.processes}",
            hint=f"accelerate launch --num_processes {config.processes} ..., or leave out --processes",
        )
    if here.count < config.processes:
        yield from train_together(train, config, fetch_base=fetch_base, stop=stop)
        return
    if here.rank:
        yield from _help(config, fetch_base)
        return
    require_trackers(config.track)
    base, data, plan = prepare(config, fetch_base)
    held = work_folder(
        config.output, overwrite=config.overwrite, resume=config.resume, restart=config.restart
    )
    with held as work:
        yield from tracked(_train_in(work, config, plan, base, data, stop), config)


def _help(config: TrainConfig, fetch_base: FetchBase | None) -> Generator[Event, None, None]:
    """The other processes' training: without a folder, they neither look nor write nor decide."""
    tune_cpu()
    from train.devices import open_accelerator

    # Waits for the first, until it has found nothing wrong with the request, and brought the base.
    open_accelerator(config.mixed_precision)
    base, data, plan = prepare(config, fetch_base)
    yield from _train_in(None, config, plan, base, data, lambda: False)


def _train_in(
    work: Work | None, config: TrainConfig, plan: Plan, base: BaseModel, data: Data, stop: Stop
) -> Generator[Event, None, None]:
    """One process's training; the first alone has a folder to work in."""
    yield Preparing(stage="loading torch")
    tune_cpu()
    # Only now: torch and its friends take seconds to import, and read the environment once.
    from train.devices import open_accelerator, quiet_libraries

    quiet_libraries()
    from train import loop
    from train.ranks import Ranks
    from train.state import Clock, read_state

    facts = identity(config, plan, base, data_hashes(data))
    captured = None
    if config.resume and work:
        captured, then = read_state(work.checkpoint)
        refuse_other_training(facts, then)
    yield Preparing(stage=f"loading {base.id}, encoding the data")
    ranks = Ranks(open_accelerator(config.mixed_precision)[0])
    # Also because the first may draw class images into the data, once the others have read them.
    ranks.require_same(facts)
    accelerator, task, state = open_training(config, plan, base, data)
    captured = ranks.from_first(captured)
    if captured:
        state.restore_all(captured, ranks)
    else:
        state.share(ranks)
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
        processes=plan.processes,
    )
    if isinstance(data, MaskData):
        from hubctl.modeling.picture_input import picture_input

        height, width = picture_input(base.path).size_px
        if (height, width) != (plan.resolution_px,) * 2:
            yield Warned(
                message=f"trained at {plan.resolution_px} px, but {base.id} is served at its own {width} x "
                f"{height} px: expect worse masks than the figures say"
            )
    if captured:
        yield Resumed(step=state.progress.step)
    elif work and plan.sample_steps:
        yield Sampled(path=task.sample(0, work.samples), step=0)
    steps = loop.run_steps(task, config, plan, accelerator, state)
    opened = Opened(
        config=config,
        plan=plan,
        base=base,
        data=data,
        facts=facts,
        accelerator=accelerator,
        ranks=ranks,
        task=task,
        state=state,
        clock=clock,
    )
    stopped = False
    for event in looked_after(steps, opened, work, stop):
        yield event
        stopped = isinstance(event, Stopped)
    ranks.leave()
    if work and not stopped:
        yield from _finished(opened, work)


def _finished(opened: Opened, work: Work) -> Iterator[Event]:
    """After the steps: the best state judged, and the adapter folder made of it.

    Raises:
        DivergedError: there is no adapter to keep, since the last steps spoilt it.
    """
    from train import export

    config, plan, base, data = opened.config, opened.plan, opened.base, opened.data
    task, state = opened.task, opened.state
    # Takes autocast off the module again, so that it is judged and saved as others will load it.
    opened.accelerator.unwrap_model(state.module, keep_fp32_wrapper=False)
    kept = take_best(state)
    if not state.is_finite():
        raise DivergedError(
            "training has diverged: the adapter's weights are no numbers any more",
            hint=f"train again with a lower rate: --lr {plan.learning_rate / 16:.0e}",
        )
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
        looks=looks(state),
        evaluation=evaluation,
        prompts=task.prompts,
        duration_s=opened.clock.elapsed_s(),
        device=str(opened.accelerator.device),
    )
    recipe = Recipe(
        settings=recipe_settings(config, plan),
        data={**data_hashes(data), "images": task.images + task.held_out_images + len(data.watched)},
        base={"id": base.id, "commit": base.commit, "sha256": base.sha256},
        versions=opened.facts["versions"],
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
