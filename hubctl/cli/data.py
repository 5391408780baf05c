"""`hubctl data check`: what is wrong or odd about a folder of training data."""

from __future__ import annotations

from pathlib import Path

import click

from hubctl.cli.output import Output, json_option


@click.group(no_args_is_help=True)
def data() -> None:
    """Look after training data."""


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
