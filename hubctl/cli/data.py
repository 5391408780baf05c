"""`hubctl data`: training data brought from a registry, and what is wrong or odd about a folder of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hubctl.cli.options import remote_option
from hubctl.cli.output import Output, json_option


@click.group(no_args_is_help=True)
def data() -> None:
    """Look after training data."""


@data.command()
@click.argument("dataset", metavar="OWNER/NAME[@REV]")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--split", metavar="NAME", help="This split alone.  [default: train, and test or validation]")
@click.option("--image-column", metavar="NAME", help="[default: the first one with images]")
@click.option("--caption-column", metavar="NAME", help="[default: text, caption, prompt, ...]")
@click.option(
    "--mask-column", metavar="NAME", help="[default: mask, annotation, label, ... if it holds images]"
)
@click.option("--limit", type=click.IntRange(1), metavar="ROWS", help="The first rows of each split alone.")
@click.option("--include", multiple=True, metavar="PATTERN", help="Only these files, e.g. 'data/train-*'.")
@click.option("--overwrite", is_flag=True, help="Replace the folder if it is there.")
@remote_option
@json_option
@click.pass_obj
def pull(
    out: Output,
    /,
    dataset: str,
    folder: Path,
    include: tuple[str, ...],
    overwrite: bool,
    remote: str | None,
    **choice: Any,
) -> None:
    """Bring a dataset from the registry, as a folder to train on.

    Anything that the library `datasets` reads: Parquet, Arrow, CSV, WebDataset, imagefolder. Images come out
    byte for byte, with their captions in a metadata.jsonl, or with masks beside them.

    \b
    Examples:
      hubctl data pull lambdalabs/naruto-blip-captions naruto --remote hf
      hubctl data pull alice/scenes scenes --mask-column annotation --limit 500
    """  # fmt: skip
    import tempfile

    from hubctl.adapter.package import new_folder, refuse_existing
    from hubctl.hub.datasets import download_dataset
    from hubctl.hub.remotes import connect
    from hubctl.refs import AdapterRef
    from train.tables import write_dataset

    refuse_existing(folder, overwrite=overwrite)
    with tempfile.TemporaryDirectory(prefix="hubctl-data-") as scratch:
        source = Path(scratch) / "files"
        out.note(f"downloading {dataset} ...")
        commit = download_dataset(connect(remote), AdapterRef.parse(dataset), source, include=include)
        chosen = {name.removesuffix("_column"): value for name, value in choice.items()}
        with out.progress(None, "writing images") as bar, new_folder(folder, overwrite=overwrite) as made:
            done = total = 0
            for done, total in write_dataset(source, made, **chosen):
                bar.update(done, total=total)
    answer = {
        "folder": str(folder),
        "dataset": dataset,
        "commit": commit,
        "images": done,
        "left_out": total - done,
    }
    out.result(answer, text=f"{folder}: {done} images of {dataset} at {commit[:12]}", quiet="folder")
    if total > done:
        out.note(f"  left out: {total - done} rows that lack an image, a caption or a mask")
    out.note(f"  next: hubctl data check {folder}")


@data.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--trigger", metavar="WORD", help="A word that every caption should have.")
@click.option(
    "--min-px",
    type=int,
    default=64,
    show_default=True,
    metavar="PX",
    help="Shorter side below which an image is called tiny.",
)
@click.option("--strict", is_flag=True, help="Fail on warnings too.")
@json_option
@click.pass_obj
def check(out: Output, /, folder: Path, trigger: str | None, min_px: int, strict: bool) -> None:
    """Look through a folder before you train on it: every fault at once, not the first one alone.

    DIR is what `hubctl train` takes: images with captions, images with masks, or images of one subject. Exit
    code 2 means that training would refuse it (with --strict also that there are warnings).

    \b
    Examples:
      hubctl data check drawings/ --trigger "line art"
      hubctl data check pets/ --json
    """
    from dataclasses import asdict

    from train.lint import lint

    found = lint(folder, min_px=min_px, trigger=trigger)
    warnings = sum(finding.level == "warning" for finding in found.findings)
    if out.json:
        out.result({"folder": str(folder), "errors": found.errors, "warnings": warnings, **asdict(found)})
    else:
        out.table(
            [asdict(finding) for finding in found.findings],
            {"file": "file", "level": "level", "code": "code", "message": "what"},
            empty="nothing to complain about",
        )
        for file, caption in found.captions.items():
            out.note(f"  {file}: {caption}")
        for name, share in found.classes.items():
            out.note(f"  {name}: {share:.1%} of the pixels")
        out.note(f"{found.kind}: {found.images} images, {found.errors} errors, {warnings} warnings")
    if found.errors or (strict and warnings):
        raise SystemExit(2)
