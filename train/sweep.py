"""A grid of trainings over rank, rate and steps: its cells, the table, the best of them, one sheet."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hubctl.adapter.card import read_card_data
from hubctl.adapter.package import read_manifest
from hubctl.base_models import BaseModel
from hubctl.errors import ConflictError, InputError
from train.config import TrainConfig
from train.prepare import data_hashes, plan_for, read_data, refuse_inputs
from train.recipe import RECIPE, read_recipe, recipe_settings

MOST = 64
"""Trainings in one grid: more are a mistake in the lists sooner than a plan."""
SHEET = "sheet.png"
TABLE = "sweep.json"

Row = dict[str, Any]


def cells(
    config: TrainConfig, ranks: Sequence[int], rates: Sequence[float], steps: Sequence[int]
) -> tuple[TrainConfig, ...]:
    """A training for each combination, below `config.output`; an empty list leaves that setting alone.

    Raises:
        InputError: there are more than `MOST`, or one of them cannot be.
    """
    given = {"rank": ranks, "learning_rate": rates, "steps": steps}
    lists = {name: dict.fromkeys(values) for name, values in given.items() if values}
    points = [dict(zip(lists, point, strict=True)) for point in itertools.product(*lists.values())]
    if len(points) > MOST:
        raise InputError(f"that makes {len(points)} trainings", hint=f"give lists that make {MOST} at most")
    made: list[TrainConfig] = []
    for point in points:
        changes: dict[str, Any] = {**point, "output": config.output / cell_name(point)}
        made.append(dataclasses.replace(config, **changes))
    return tuple(made)


def cell_name(point: Mapping[str, float]) -> str:
    """A folder's name: `rank-4_lr-0.001_steps-400`."""
    short = {"learning_rate": "lr"}
    return "_".join(f"{short.get(name, name)}-{_said(value)}" for name, value in point.items()) or "only"


def checked(config: TrainConfig, grid: Sequence[TrainConfig], base: BaseModel) -> dict[str, str]:
    """The hashes of what all cells are trained on, once nothing stands against it.

    Raises:
        DataError: something about the data cannot be used.
        InputError: an output would replace what it is made from.
    """
    for part in (config, *grid):
        refuse_inputs(part, base)
    return data_hashes(read_data(config, base.sha256, plan_for(config, base).resolution_px))


def is_done(config: TrainConfig, base: BaseModel, data_hashes: Mapping[str, str]) -> bool:
    """Whether the cell was trained before, with the same settings on the same data.

    Raises:
        ConflictError: something else is in its place.
    """
    if not config.output.exists() or config.overwrite:
        return False
    settings = json.loads(json.dumps(recipe_settings(config, plan_for(config, base))))
    other = "with other settings"
    if (config.output / RECIPE).is_file():
        then = read_recipe(config.output)
        if then.settings == settings and then.base.get("sha256") == base.sha256:
            # Recipes of earlier versions have fewer.
            if all(then.data.get(name, value) == value for name, value in data_hashes.items()):
                return True
            other = f"on other data than {config.data} holds now"
    raise ConflictError(
        f"{config.output} was trained {other}", hint="choose another --output, or add --overwrite"
    )


def row(folder: Path, *, judged: Mapping[str, Any]) -> Row:
    """A line of the table: what the manifest says, and what `hubctl eval` found."""
    manifest = read_manifest(folder)
    if manifest is None:
        raise InputError(f"{folder} has no manifest", hint="train it again: --overwrite")
    settings, metrics = manifest.settings, manifest.metrics
    found: Row = {
        "rank": settings["rank"],
        "lr": settings["learning_rate"],
        "steps": settings["steps"],
        "kept_step": int(metrics.get("kept_step", metrics["steps_done"])),
        "held_out_loss": metrics.get("held_out_loss"),
        **judged,
        "seconds": metrics["duration_s"],
        "folder": folder.name,
    }
    return {name: value for name, value in found.items() if value is not None}


def score(row: Row) -> tuple[float, float] | None:
    """How good a cell is, more being better; None where nothing tells.

    Masks: the mean IoU on the test part, else on images held out, else on all. Pictures: the harmonic mean
    of what was learnt (how much of the way from the base's likeness to the references to a perfect one) and
    of what stays as it was (1 - drift), then the loss on images held out. Training loss says nothing: it
    falls until the adapter is spoilt.
    """
    held_out = -row["held_out_loss"] if "held_out_loss" in row else None
    if "miou" in row:
        unseen = float(row["miou"]) if held_out is None or row["split"] == "test" else 1 + held_out
        return unseen, 0.0
    if "similarity" in row:
        base = row["base_similarity"]
        learnt = max(0.0, (row["similarity"] - base) / (1 - base)) if base < 1 else 0.0
        kept = max(0.0, 1 - row["drift"])
        both = 2 * learnt * kept / (learnt + kept) if learnt + kept else 0.0
        return both, held_out or 0.0
    return None if held_out is None else (0.0, held_out)


def best(rows: Sequence[Row]) -> int | None:
    """The place of the best row, the first of equals; None where nothing tells."""
    scores = {place: told for place, row in enumerate(rows) if (told := score(row)) is not None}
    return max(scores, key=lambda place: scores[place]) if scores else None


def draw_sheet(folders: Sequence[Path], output: Path) -> str | None:
    """`sheet.png`: a column for each cell, a row for each of its last samples; None where none were drawn."""
    from train.dataset import open_image
    from train.tasks.grid import draw_grid

    samples = [sorted((folder / "samples").glob("sample-*.png"), key=_number) for folder in folders]
    count = min(len(files) for files in samples)
    if not count:
        return None
    shown = read_card_data(folders[0]).get("widget") or []
    rows = [*(entry["text"] for entry in shown), *[""] * count][:count]
    pictures = [[open_image(files[place]) for files in samples] for place in range(count)]
    draw_grid(rows, [folder.name.replace("_", " ") for folder in folders], pictures).save(output / SHEET)
    return str(output / SHEET)


def _said(value: float) -> str:
    """As short as people write it, unless that would be another number."""
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)


def _number(path: Path) -> int:
    return int(path.stem.rpartition("-")[2])
