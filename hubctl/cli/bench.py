"""`hubctl bench`: the engine and the hub measured beside their peers, on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hubctl.cli.options import SIZE
from hubctl.cli.output import Output, json_option
from hubctl.errors import InputError


@click.group()
def bench() -> None:
    """Measure this machine, side by side with other ways to do the same."""


@bench.command()
@click.option(
    "--base", "shapes", multiple=True, default=("emoji-64",), show_default=True, metavar="SHAPE",
    help="Layer shapes to measure: emoji-64, sd15, sd15-few, sdxl, sd3-medium, flux1, segformer-b0, "
    "segformer-b2. May be repeated.",
)  # fmt: skip
@click.option(
    "--adapters", default="1,2,4,8", show_default=True, help="Different adapters among the requests."
)
@click.option(
    "--jobs", type=click.IntRange(1), default=8, show_default=True, help="Clients, and so requests at once."
)
@click.option("--rank", type=click.IntRange(1), default=16, show_default=True)
@click.option(
    "--turns",
    type=click.IntRange(1),
    default=4,
    show_default=True,
    help="Requests of each client in a round.",
)
@click.option(
    "--rounds", type=click.IntRange(1), default=3, show_default=True, help="How often all is measured."
)
@click.option("--steps", type=click.IntRange(1), help="Denoising steps  [default: the shape's own]")
@click.option("--side", type=click.IntRange(32), help="Pixels  [default: the shape's own]")
@click.option(
    "--residents",
    default="1,10,100,1000",
    show_default=True,
    help="Resident adapters when loading and switching.",
)
@click.option("--device", default="auto", show_default=True)
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="auto",
    show_default=True,
)
@click.option(
    "--compile",
    "compiler",
    type=click.Choice(["off", "inductor"]),
    default="off",
    show_default=True,
    help="Run hubctl and the base alone through torch.compile.",
)
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    help="Folder for the tables (Markdown, JSON) and the plot.",
)
@json_option
@click.pass_obj
def engine(
    output: Output,
    shapes: tuple[str, ...],
    adapters: str,
    residents: str,
    out: Path | None,
    jobs: int,
    rank: int,
    turns: int,
    rounds: int,
    steps: int | None,
    side: int | None,
    device: str,
    dtype: Any,
    compiler: Any,
) -> None:
    """Serve many adapters over one base in every known way, and compare.

    The base alone is the limit; then hubctl with mixed adapters and with one adapter a forward, diffusers'
    set_adapters and hotswap, and peft's adapter_names. Weights are random where none come with hubctl.

    \b
    Examples:
      hubctl bench engine
      hubctl bench engine --base segformer-b0 --base sd15-few --device cuda -o benchmarks/
      hubctl bench engine --base emoji-64 --steps 4 --turns 1 --rounds 1 --json
    """
    from dataclasses import asdict

    from hubctl.cpu import tune_cpu

    tune_cpu()  # before torch is there: it reads them once

    from serve.bench.report import to_markdown, write_report  # seconds: torch
    from serve.bench.run import Settings, measure_engine

    settings = [
        Settings(
            shape=shape,
            adapters=_counts("--adapters", adapters),
            residents=_counts("--residents", residents),
            jobs=jobs,
            rank=rank,
            turns=turns,
            rounds=rounds,
            steps=steps,
            side_px=side,
            device=device,
            dtype=dtype,
            compile=compiler,
        )
        for shape in shapes
    ]
    reports = []
    for one in settings:
        with output.progress(None, one.shape) as progress:

            def tell(what: str, done: int, total: int, shape: str = one.shape) -> None:
                progress.say(f"{shape}: {what}")
                progress.update(done, total=total)

            report = measure_engine(one, tell)
        reports.append(report)
        output.text(to_markdown(report))
        if out is not None:
            for path in write_report(report, out):
                output.note(f"wrote {path}")
    if output.json:
        output.result({"reports": [asdict(report) for report in reports]})


@bench.command()
@click.option("--size", type=SIZE, default="50MB", show_default=True, help="Of the adapter.")
@click.option("--repositories", type=click.IntRange(1000), default=100_000, show_default=True)
@click.option("--pullers", type=click.IntRange(1), default=32, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Of each measurement.")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Folder for the table (hub.md).")
@json_option
@click.pass_obj
def hub(output: Output, size: int, repositories: int, pullers: int, rounds: int, out: Path | None) -> None:
    """Measure push, pull, a full registry, many pullers and start-up, each beside the plain way.

    \b
    Examples:
      hubctl bench hub
      hubctl bench hub --repositories 1000 --rounds 2 --json
      hubctl bench hub -o tests/bench
    """
    from dataclasses import asdict

    from hubctl.bench.hub import MB, Settings, machine, measure_hub, to_markdown

    settings = Settings(
        adapter_mb=max(1, size // MB), repositories=repositories, pullers=pullers, rounds=rounds
    )
    with output.progress(None, "hub") as progress:
        rows = measure_hub(settings, progress.say)
    output.text(to_markdown(rows, machine()))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "hub.md").write_text(f"# hub\n\n{to_markdown(rows, machine())}", encoding="utf-8")
        output.note(f"wrote {out / 'hub.md'}")
    if output.json:
        output.result({"rows": [{**asdict(row), "ratio": row.ratio} for row in rows]})


@bench.command("train")
@click.option(
    "--base",
    "bases",
    multiple=True,
    default=("emoji-64",),
    show_default=True,
    metavar="NAME",
    help="emoji-64, sd15 (its shape, random weights), or a folder; may be repeated.",
)
@click.option("--batch-size", type=click.IntRange(1), help="Images a step.  [default: 16 at 64 px, else 1]")
@click.option("--rounds", type=click.IntRange(1), default=20, show_default=True, help="Steps of each loop.")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Folder for the table (train.md).")
@json_option
@click.pass_obj
def training(
    output: Output, bases: tuple[str, ...], batch_size: int | None, rounds: int, out: Path | None
) -> None:
    """Measure a training step beside that of a plain loop which encodes anew each time.

    \b
    Examples:
      hubctl bench train
      hubctl bench train --base emoji-64 --base sd15 --rounds 5 -o tests/bench
    """  # fmt: skip
    from dataclasses import asdict

    from train.bench.run import measure_training, to_markdown

    reports = []
    for base in bases:
        size = batch_size or (16 if base == "emoji-64" else 1)
        with output.progress(None, base) as progress:
            reports.append(measure_training(base, batch_size=size, rounds=rounds, say=progress.say))
    output.text(to_markdown(reports))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        head = f"# train\n\n{reports[0].machine}, {reports[0].device}; medians of {rounds} rounds.\n\n"
        (out / "train.md").write_text(head + to_markdown(reports), encoding="utf-8")
        output.note(f"wrote {out / 'train.md'}")
    if output.json:
        output.result({"reports": [asdict(report) for report in reports]})


def _counts(flag: str, text: str) -> tuple[int, ...]:
    try:
        counts = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        counts = ()
    if not counts or counts[0] < 1:
        raise InputError(f"{flag} is '{text}'", hint=f"give {flag} numbers, e.g. 1,4,8")
    return counts
