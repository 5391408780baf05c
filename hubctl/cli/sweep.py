"""`hubctl train sweep`: a training for each combination of ranks, rates and steps, and one table of all."""

from __future__ import annotations

import dataclasses
import json
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hubctl.cli.evaluate import shown
from hubctl.cli.output import Output, duration
from hubctl.cli.train import config_of, fetch_base, run_training, train
from hubctl.errors import DivergedError, InputError
from hubctl.settings import place

if TYPE_CHECKING:
    from train.config import TrainConfig
    from train.sweep import Row

_LISTS = {"rank": int, "learning_rate": float, "steps": int}
_ALONE = ("plan_only", "resume", "restart", "cluster", "repo", "gpus", "send_token")
"""Flags that only one training can have."""


class _Numbers(click.ParamType[tuple[float, ...]]):
    """Numbers with commas between them."""

    name = "numbers"

    def __init__(self, kind: type[int] | type[float]) -> None:
        self._kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read `value`; a tuple that was read already stays."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(self._kind(word) for word in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is no list like 4,16", param, ctx)


@click.group(no_args_is_help=True)
def sweep() -> None:
    """Find the rank, rate and steps that suit your images: train a small grid, and compare.

    Flags are those of the training itself, but --rank, --lr and --steps take lists. Each combination becomes
    an adapter folder in --output; beside them are sweep.json and sheet.png, on which all can be seen. The
    same command goes on where it was stopped: what is trained already is not trained again.

    \b
    Examples:
      hubctl train sweep text-to-image --base emoji-64 --data drawings/ --output grid \\
          --rank 4,16 --lr 5e-4,2e-3 --steps 200,400
      hubctl train sweep segmentation --base emoji-64-seg --data pets/ --output grid --lr 1e-3,5e-3
    """


def _run(task: str, out: Output, /, embedder: str | None = None, **settings: Any) -> None:
    from hubctl.base_models import locate_base
    from train.sweep import TABLE, best, cells, checked, draw_sheet, is_done, row

    if place().count > 1:
        raise InputError("a sweep starts its processes itself", hint="hubctl train sweep ... --processes N")
    lists = [settings.pop(name) for name in _LISTS]
    config = config_of(task=task, **settings)
    grid = cells(config, *lists)
    base = locate_base(config.base, fetch=fetch_base)
    hashes = checked(config, grid, base)
    kept: list[TrainConfig] = []
    rows: list[Row] = []
    spent_s: list[float] = []
    for number, cell in enumerate(grid, start=1):
        mean_s = sum(spent_s) / max(1, len(spent_s))
        left = f", about {duration(mean_s * (len(grid) - number + 1))} left" if spent_s else ""
        out.note(f"[{number}/{len(grid)}] {cell.output.name}{left}")
        started_s = time.monotonic()
        done = is_done(cell, base, hashes)
        trained = done or _train(out, cell)
        if not done:
            spent_s.append(time.monotonic() - started_s)
        if trained:
            kept.append(cell)
            rows.append(row(cell.output, judged=_judged(out, cell, embedder, again=not done)))
    if not rows:
        raise DivergedError("every training of the grid has diverged", hint="sweep over lower rates: --lr")
    winner = best(rows)
    answer: dict[str, Any] = {
        "best": str(kept[winner].output) if winner is not None else None,
        "sheet": draw_sheet([cell.output for cell in kept], config.output),
        "rows": rows,
        "diverged": [str(cell.output) for cell in grid if cell not in kept],
    }
    (config.output / TABLE).write_text(json.dumps(answer, indent=2) + "\n", encoding="utf-8")
    _show(out, answer)


def _train(out: Output, cell: TrainConfig) -> bool:
    """Train a cell, from where an earlier sweep was stopped; false if it diverges, as others need not."""
    from train.work import Work, work_path

    work = Work(folder=work_path(cell.output))
    try:
        run_training(out, dataclasses.replace(cell, resume=work.checkpoint.is_file()), resume_flag=())
    except DivergedError as error:
        out.warn(f"{cell.output.name}: {error.message}")
        return False
    return True


def _judged(out: Output, cell: TrainConfig, embedder: str | None, *, again: bool) -> dict[str, Any]:
    """What `hubctl eval` finds, where something can judge it; found before on the same data, it is read."""
    from hubctl.adapter.package import REPORT
    from train.evaluation.config import EvalConfig, can_judge
    from train.evaluation.run import evaluate, is_judged

    if not can_judge(cell.task, cell.base, embedder):
        return {}
    judge = f"-{Path(embedder).name}" if embedder else ""
    report = cell.output.parent / f"reports{judge}" / cell.output.name
    config = EvalConfig(adapter=cell.output, data=cell.data, output=report, embedder=embedder, overwrite=True)
    if again or not is_judged(config):
        shown(out, evaluate(config, fetch_base=fetch_base))
    found = json.loads((report / REPORT).read_text(encoding="utf-8"))
    names = ("miou", "base_similarity", "similarity", "prompt_adherence", "drift")
    return {name: found["metrics"][name] for name in names if name in found["metrics"]} | {
        "split": found["split"]
    }


def _show(out: Output, answer: dict[str, Any]) -> None:
    if out.json:
        out.event("swept", answer)  # after the trainings' own lines
        return
    rows = [
        {
            key: round(value, 4) if isinstance(value, float) and key != "lr" else value
            for key, value in row.items()
        }
        for row in answer["rows"]
    ]
    out.table(rows, {key: key.replace("_", " ") for key in rows[0]})
    if answer["sheet"]:
        out.note(f"all of them on one sheet: {answer['sheet']}")
    if answer["best"]:
        out.note(f"best by these figures: {answer['best']}")
        out.note(f"  next: hubctl push {answer['best']}")
    else:
        out.note("nothing here can say which is best: look at the sheet, or give --hold-out or --embedder")


def _flag(flag: click.Parameter) -> click.Parameter:
    """A training's flag, as the sweep takes it."""
    kind = _LISTS.get(flag.name or "")
    if kind is None:
        return flag
    usual = "16" if flag.name == "rank" else "by task and base"
    return click.Option(
        [*flag.opts, str(flag.name)],
        type=_Numbers(kind),
        default=(),
        metavar="LIST",
        help=f"One or more, with commas.  [default: {usual}]",
    )


_EXAMPLES = {
    "text-to-image": "--base emoji-64 --data drawings/",
    "dreambooth": '--base emoji-64 --data my-dog/ --instance-prompt "a photo of tok dog"',
    "segmentation": "--base emoji-64-seg --data pets/",
}
_EMBEDDER = click.Option(
    ["--embedder"], metavar="REF", help="CLIP or DINOv2 to judge pictures.  [default: for emoji-64 its own]"
)

for _name, _command in train.commands.items():
    sweep.add_command(
        click.Command(
            _name,
            params=[
                *(_flag(flag) for flag in _command.params if flag.name not in _ALONE),
                *([_EMBEDDER] if _name != "segmentation" else []),
            ],
            callback=click.pass_obj(partial(_run, _name)),
            help=f"""Train a grid of adapters by `hubctl train {_name}`, and compare them.

            \b
            Example:
              hubctl train sweep {_name} {_EXAMPLES[_name]} \\
                  --output grid --rank 4,16 --lr 5e-4,2e-3
            """,
        )
    )
