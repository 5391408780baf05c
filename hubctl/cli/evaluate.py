"""`hubctl eval`: how good an adapter is, in figures and pictures."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hubctl.cli.options import remote_option
from hubctl.cli.output import Output, Progress, json_option

if TYPE_CHECKING:
    from collections.abc import Generator

    from train.evaluation.config import Report
    from train.events import Event

_FOLDER = click.Path(path_type=Path)


@click.command("eval")
@click.argument("adapter", metavar="ADAPTER")
@click.option("--data", required=True, type=_FOLDER, metavar="DIR", help="Images to judge it by.")
@click.option("--output", type=_FOLDER, metavar="DIR", help="Folder of the report.  [default: ADAPTER-eval]")
@click.option("--overwrite", is_flag=True, help="Replace the output folder if it is there.")
@click.option("--base", metavar="REF", help="Base, where the adapter does not name it.")
@click.option(
    "--embedder",
    metavar="REF",
    help="CLIP or DINOv2 that judges pictures: a folder or OWNER/NAME.  [default: only for emoji-64]",
)
@click.option("--prompt", metavar="TEXT", help="What images without captions show.")
@click.option("--images", type=int, default=16, show_default=True, help="References to draw after, at most.")
@click.option("--seed", type=int, default=0, show_default=True, help="Same seed, same pictures.")
@click.option(
    "--card/--no-card", default=True, help="Write the figures into the adapter's card.  [default: yes]"
)
@remote_option
@json_option
@click.pass_obj
def evaluate(
    out: Output, /, adapter: str, output: Path | None, card: bool, remote: str | None, **settings: Any
) -> None:
    """Judge an adapter on images that it has not seen.

    ADAPTER is a folder or a name on a registry. DIR is laid out as for training; of DIR/train and DIR/test
    the second judges. Segmentation: mean IoU, Dice and pixel accuracy at the masks' own resolution, by class,
    with overlays. Generation: likeness to the images, adherence to their captions, and drift: what becomes
    of prompts that have nothing to do with it; with the adapter at strengths 0, 0.5 and 1.

    \b
    Examples:
      hubctl eval pets-lora --data pets/
      hubctl eval alice/my-dog --data my-dog/ --embedder openai/clip-vit-base-patch32 --output report
    """  # fmt: skip
    from hubctl.adapter.package import REPORT
    from hubctl.cli.convert import locate
    from hubctl.cli.train import fetch_base
    from train.evaluation.config import EvalConfig
    from train.evaluation.run import evaluate as judge

    folder = locate(adapter, remote)
    own = Path(adapter).is_dir()
    name = folder.resolve().name if own else adapter.rpartition("/")[2]
    config = EvalConfig(
        adapter=folder,
        output=output or Path(f"{name}-eval"),
        card=card and own,  # what was pulled is kept as it is on the registry
        **settings,
    )
    report = shown(out, judge(config, fetch_base=fetch_base))
    metrics = {name: round(value, 4) for name, value in report.metrics.items()}
    if out.json:
        out.result({"report": str(config.output / REPORT), "images": report.images, "split": report.split,
                    "metrics": metrics, "rows": report.rows})  # fmt: skip
        return
    columns = {key: key.replace("_", " ") for key in report.rows[0]}
    out.table(
        [{key: _rounded(value) for key, value in row.items()} for row in report.rows], columns, empty=""
    )
    for key, value in metrics.items():
        out.note(f"  {key.replace('_', ' ')}: {value:.4f}")
    out.note(f"{report.images} images ({report.split}); figures and pictures: {config.output}")
    if config.card:
        out.note(f"  written into {folder / 'README.md'} too; next: hubctl push {adapter}")


def shown(out: Output, events: Generator[Event, None, Report]) -> Report:
    """Show a judgement as it goes on, and return what it found."""
    from train.events import Judged, Preparing, Warned

    with ExitStack() as steps:
        bar: Progress | None = None
        while True:
            try:
                event = next(events)
            except StopIteration as end:
                report: Report = end.value
                return report
            match event:
                case Preparing():
                    out.note(f"{event.stage} ...")
                case Warned():
                    out.warn(event.message)
                case Judged():
                    bar = bar or steps.enter_context(out.progress(event.total, "judging"))
                    bar.update(event.done)


def _rounded(value: object) -> object:
    return round(value, 4) if isinstance(value, float) else value
