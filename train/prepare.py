"""From a configuration to a training that can begin: checked, planned, loaded and encoded.

What is found wrong here is found before torch is imported, but for `open_training`.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple

from hubctl.adapter import package
from hubctl.base_models import BaseModel, FetchBase, locate_base
from hubctl.errors import DataError, InputError
from train.base_size import native_px
from train.config import TrainConfig
from train.dataset import CaptionData, read_captions
from train.masks import MaskData, read_masks
from train.plan import Plan, make_plan
from train.recipe import Recipe
from train.subject import SubjectData, find_class_images, read_subject
from train.watch import held_out
from train.work import work_path

if TYPE_CHECKING:
    from accelerate import Accelerator

    from train.state import State
    from train.tasks.task import Setup, Task

Data = CaptionData | MaskData | SubjectData

HUB_TASKS = {
    "text-to-image": "text-to-image",
    "dreambooth": "text-to-image",
    "segmentation": "image-segmentation",
}
"""The task, as the Hub names it, that a base must have."""

NEW_TOKENS = ("sd1", "sd2", "sdxl", "flux")
"""Families whose pipelines load new tokens."""

TRAINABLE_DENOISERS = ("sd1", "sd2", "sdxl", "sd3", "flux")
"""Families for text-to-image; every segmentation model that hubctl knows is trained."""


class Prepared(NamedTuple):
    """All that is known before anything is loaded."""

    base: BaseModel
    data: Data
    plan: Plan


def prepare(config: TrainConfig, fetch_base: FetchBase | None) -> Prepared:
    """Find the base, read the data, work out the plan.

    Raises:
        HubctlError: of the class that fits the fault: the base, or the data.
    """
    base = locate_base(config.base, fetch=fetch_base)
    refuse_inputs(config, base)
    _check_task(config, base)
    plan = plan_for(config, base)
    data = read_data(config, base.sha256, plan.resolution_px)
    _check_tokens(config, data)
    if config.dora and plan.train_text_encoder:
        raise InputError(
            "diffusers loads no DoRA into a text encoder: it would leave the lengths behind",
            hint="add --no-train-text-encoder, or train without --dora",
        )
    return Prepared(base, _hold_out(data, config), plan)


def open_training(
    config: TrainConfig, plan: Plan, base: BaseModel, data: Data, *, measuring: bool = False
) -> tuple[Accelerator, Task, State]:
    """Load the base, encode the data, and set up the optimizer: everything before the first step."""
    from train.adapt import parameter_groups
    from train.devices import open_accelerator
    from train.optimizers import open_optimizer
    from train.state import State
    from train.tasks.task import Setup

    accelerator, frozen_dtype = open_accelerator(config.mixed_precision)
    if config.quantize == "nf4" and accelerator.device.type == "cpu":
        raise InputError("bitsandbytes trains over nf4 weights on a GPU only", hint="--quantize int8")
    setup = Setup(
        config=config,
        plan=plan,
        base=base,
        device=accelerator.device,
        frozen_dtype=frozen_dtype,
        first=accelerator.is_main_process,
        measuring=measuring,
    )
    # What the first process encodes and draws, the others find in the cache.
    with accelerator.main_process_first():
        task = _open_task(setup, data)
    optimizer = open_optimizer(parameter_groups(task.module, plan, config.lora_plus), config, plan)
    return accelerator, task, State(task.module, optimizer, accelerator, plan, config.seed, config.ema)


def refuse_other_data(recipe: Recipe, config: TrainConfig) -> None:
    """Raise `DataError` unless the configuration's data are what the recipe was made with."""
    data = read_data(config, str(recipe.base.get("sha256")), config.resolution or 0)
    then, now = recipe.data, data_hashes(data)
    if now["sha256"] != then.get("sha256"):
        raise DataError(
            f"{config.data} is not what the adapter was trained on: {then.get('images')} images "
            f"with the hash {str(then.get('sha256'))[:12]}..., here {now['sha256'][:12]}...",
            hint="give the original folder, captions and all",
        )
    # Recipes of earlier versions do not tell.
    if "class_sha256" in then and then["class_sha256"] != now.get("class_sha256"):
        raise DataError(
            f"the class images in {config.class_data} are not those that the adapter was trained on"
            if config.class_data
            else "the adapter was trained on class images too",
            hint="give the original folder: --class-data DIR (what the base drew into it may be missing)",
        )


def data_hashes(data: Data) -> dict[str, str]:
    """What tells these data from others, by name."""
    classes = data.classes.sha256 if isinstance(data, SubjectData) else None
    return {"sha256": data.sha256, **({"class_sha256": classes} if classes else {})}


def _hold_out(data: Data, config: TrainConfig) -> Data:
    """The data with some of the training images set aside to watch."""
    telling = _telling(data)
    chosen = [telling[place] for place in held_out(len(telling), config.hold_out, config.seed)]
    # Any: of whatever kind this data's items are.
    train: Any = tuple(item for place, item in enumerate(data.train) if place not in chosen)
    watched: Any = tuple(data.train[place] for place in chosen)
    return dataclasses.replace(data, train=train, watched=watched)


def _telling(data: Data) -> list[int]:
    """Places of the training images that can be judged: not of those whose masks are ignored as a whole."""
    if isinstance(data, MaskData):
        return [place for place, item in enumerate(data.train) if item.mask not in data.blank]
    return list(range(len(data.train)))


def _check_task(config: TrainConfig, base: BaseModel) -> None:
    if base.family.task == HUB_TASKS[config.task]:
        if config.task != "segmentation" and base.family.name not in TRAINABLE_DENOISERS:
            raise InputError(
                f"{base.id} is a {base.family.name} base, which hubctl serves but cannot train yet",
                hint=f"choose a base of the kinds {', '.join(TRAINABLE_DENOISERS)}, e.g. emoji-64",
            )
        if config.new_tokens and base.family.name not in NEW_TOKENS:
            raise InputError(
                f"diffusers loads no new tokens into a {base.family.name} base",
                hint="train without --new-token, e.g. with --train-text-encoder",
            )
        return
    fitting = "segmentation" if base.family.task == "image-segmentation" else "text-to-image"
    raise InputError(
        f"{base.id} is a base for {base.family.task}, which cannot learn {config.task}",
        hint=f"hubctl train {fitting} --base {config.base} ..., or name another base",
    )


def _check_tokens(config: TrainConfig, data: Data) -> None:
    """Raise `InputError` for a new token that no caption says."""
    if not isinstance(data, CaptionData):
        return
    for name in config.tokens:
        if not any(name in item.caption for item in data.train):
            raise InputError(
                f"no caption in {config.data} says {name}, so nothing would teach it",
                hint=f"write it into the captions: a {name} dog",
            )


def refuse_inputs(config: TrainConfig, base: BaseModel) -> None:
    """Raise `InputError` when the adapter, or the work on it, would replace what it is made from."""
    inputs = (config.data, config.class_data, base.path)
    package.refuse_inputs(config.output, inputs)
    package.refuse_inputs(work_path(config.output), inputs)


def read_data(config: TrainConfig, base_sha256: str, side_px: int) -> Data:
    """The data of the configuration's task, all of it looked at.

    Args:
        config: What is to be trained.
        base_sha256: Of the base, which may draw class images.
        side_px: Of those.

    Raises:
        DataError: something about them cannot be used.
    """
    if config.task == "segmentation":
        return read_masks(config.data, config.labels)
    if config.task == "dreambooth":
        return read_subject(config.data, find_class_images(config, base_sha256, side_px))
    return read_captions(config.data)


def plan_for(config: TrainConfig, base: BaseModel) -> Plan:
    """The numbers of a training, with what the configuration left open."""
    return make_plan(
        task=config.task,
        native_px=native_px(base.path),
        steps=config.steps,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        preset=config.preset,
        train_text_encoder=config.train_text_encoder,
        text_encoder_lr=config.text_encoder_lr,
        token_lr=config.token_lr,
        optimizer=config.optimizer,
        resolution=config.resolution,
        warmup_fraction=config.warmup_fraction,
        rank=config.rank,
        alpha=config.alpha,
        sample_every=config.sample_every,
        accumulation=config.accumulation,
        processes=config.processes,
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
