"""`recipe.lock`: what made an adapter, so that the same data make it again.

JSON: `settings` (as the command line had them, what was left open filled in), `data` (hashes and number
of images), `base` (id, commit, hash) and `versions`. Folders of data and output are not in it.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hubctl
from hubctl.base_models import BaseModel
from hubctl.errors import AdapterError
from hubctl.settings import from_mapping
from train.config import TrainConfig
from train.plan import Plan

RECIPE = "recipe.lock"
_LIBRARIES = ("torch", "diffusers", "transformers", "peft", "accelerate")
_HERE = {"base", "data", "output", "overwrite", "resume", "restart", "class_data", "track"}
"""Fields of a configuration that belong to one machine, or stand elsewhere in the recipe."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """The file's contents."""

    format: int = 1
    settings: dict[str, Any]
    data: dict[str, Any]
    base: dict[str, Any]
    versions: dict[str, str]


def recipe_settings(config: TrainConfig, plan: Plan) -> dict[str, Any]:
    """The configuration's fields, with what the plan chose in place of what was left open."""
    chosen = {name: value for name, value in dataclasses.asdict(config).items() if name not in _HERE}
    return chosen | {
        "steps": plan.steps,
        "batch_size": plan.batch_size,
        "learning_rate": plan.learning_rate,
        "train_text_encoder": plan.train_text_encoder,
        "text_encoder_lr": _own_rate(config, plan.text_encoder_lr, plan.train_text_encoder),
        "token_lr": _own_rate(config, plan.token_lr, bool(config.new_tokens)),
        "resolution": plan.resolution_px,
        "alpha": plan.alpha,
        "labels": {str(number): name for number, name in config.labels.items()},
    }


def _own_rate(config: TrainConfig, rate: float, trains: bool) -> float | None:
    # Prodigy takes none.
    return rate if trains and config.optimizer != "prodigy" else None


def current_versions() -> dict[str, str]:
    """The versions that numbers depend on."""
    versions = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    return {"hubctl": hubctl.__version__, "python": platform.python_version(), **versions}


def identity(
    config: TrainConfig, plan: Plan, base: BaseModel, data_hashes: Mapping[str, str]
) -> dict[str, Any]:
    """What makes a training this one and no other, in plain JSON values: the same make the same bytes."""
    looks = {"sample_every", "sample_prompts", "checkpoint_every"}  # looking changes nothing
    settings = {name: value for name, value in recipe_settings(config, plan).items() if name not in looks}
    facts: dict[str, Any] = json.loads(
        json.dumps(
            {
                "settings": settings,
                "data": {**data_hashes},
                "base": {"id": base.id, "sha256": base.sha256},
                "versions": current_versions(),
            }
        )
    )
    return facts


def write_recipe(folder: Path, recipe: Recipe) -> None:
    """Write it into an adapter folder."""
    text = json.dumps(dataclasses.asdict(recipe), indent=2, sort_keys=True) + "\n"
    (folder / RECIPE).write_text(text, encoding="utf-8")


def read_recipe(folder: Path) -> Recipe:
    """The recipe of an adapter folder.

    Raises:
        AdapterError: it has none, or one that this hubctl does not understand.
    """
    path = folder / RECIPE
    if not path.is_file():
        raise AdapterError(
            f"{folder.name} has no {RECIPE}: it was not trained by hubctl, or by an earlier one",
            hint="train it with `hubctl train`",
        )
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(table, dict) or table.get("format") != 1:
            raise AdapterError(f"{path} is no recipe that this hubctl knows", hint="update hubctl")
        return from_mapping(Recipe, table, where=RECIPE)
    except (OSError, ValueError) as error:
        raise AdapterError(f"{path} cannot be read: {error}") from error


def config_from(recipe: Recipe, *, data: Path, output: Path, class_data: Path | None = None) -> TrainConfig:
    """The configuration that the recipe was written for, with this machine's folders.

    Raises:
        AdapterError: a setting is unknown or of another type.
        InputError: a setting is out of range.
    """
    settings = dict(recipe.settings)
    base, commit = recipe.base.get("id"), recipe.base.get("commit")
    try:
        for name in ("targets", "sample_prompts", "new_tokens"):
            settings[name] = tuple(settings.get(name, ()))
        settings["labels"] = {int(number): name for number, name in settings["labels"].items()}
        return TrainConfig(
            base=f"{base}@{commit}" if commit else str(base),
            data=data,
            output=output,
            class_data=class_data,
            **settings,
        )
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise AdapterError(f"{RECIPE} is malformed: {error}", hint="update hubctl") from error
