"""`hubctl reproduce`: train an adapter again from its recipe, and compare."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hubctl.cli.options import remote_option
from hubctl.cli.output import Output, json_option
from hubctl.cli.train import run_training

if TYPE_CHECKING:
    from train.recipe import Recipe

_FOLDER = click.Path(path_type=Path)


@click.command()
@click.argument("adapter", metavar="ADAPTER")
@click.option("--data", required=True, type=_FOLDER, metavar="DIR", help="The data that it was trained on.")
@click.option("--class-data", type=_FOLDER, metavar="DIR", help="dreambooth: its images of the class.")
@click.option("--output", required=True, type=_FOLDER, metavar="DIR", help="Folder for the new one.")
@click.option("--overwrite", is_flag=True, help="Replace the output folder if it is there.")
@click.option("--resume", is_flag=True, help="Go on with one that was stopped.")
@click.option("--restart", is_flag=True, help="Give up one that was stopped, and begin again.")
@remote_option
@json_option
@click.pass_obj
def reproduce(
    out: Output, /, adapter: str, data: Path, class_data: Path | None, remote: str | None, **where: Any
) -> None:
    """Train an adapter again from its recipe.lock, and compare the two.

    ADAPTER is a folder or a name on a registry. The data must be the same, which is checked before anything
    is loaded. On a CPU with the same versions the weights come out bit by bit the same; otherwise the answer
    says how far apart they are. Exit code 0 in both cases: judging the distance is yours.

    \b
    Examples:
      hubctl reproduce alice/line-art --data drawings/ --output again
      hubctl reproduce my-lora --data photos/ --output again --json
    """
    import dataclasses

    from hubctl.adapter.diff import diff
    from hubctl.adapter.package import refuse_inputs
    from hubctl.cli.convert import locate
    from train.prepare import refuse_other_data
    from train.recipe import config_from, read_recipe

    folder = locate(adapter, remote)
    refuse_inputs(where["output"], [folder])
    recipe = read_recipe(folder)
    config = config_from(recipe, data=data, output=where["output"], class_data=class_data)
    config = dataclasses.replace(config, **where)
    refuse_other_data(recipe, config)
    versions = _changed_versions(recipe)
    for name, (then, now) in versions.items():
        out.warn(f"{name} was {then} and is {now}: the weights may come out otherwise")
    run_training(out, config)
    same = _weights(folder) == _weights(config.output)
    found = diff(folder, config.output)
    relative = found.change / found.norm[0] if found.norm[0] else 0.0
    answer = {
        "adapter": adapter,
        "again": str(config.output),
        "identical": same,
        "relative_change": relative,
        "cosine": found.cosine,
        "versions": versions,
    }
    if out.json:
        out.event("compared", answer)  # after the training's own lines
        return
    out.result(
        answer,
        text="the weights are the same, bit by bit"
        if same
        else f"the weights differ by {relative:.2%} of their size, cosine {found.cosine or 0:.4f}",
        quiet="identical",
    )


def _weights(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in sorted(folder.glob("*.safetensors")))


def _changed_versions(recipe: Recipe) -> dict[str, tuple[str, str | None]]:
    from train.recipe import current_versions

    now = current_versions()
    return {
        name: (version, now.get(name))
        for name, version in recipe.versions.items()
        if now.get(name) != version
    }
