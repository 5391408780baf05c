"""`hubctl diff, convert, merge, resize`: adapters compared, and made into others, without their base."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hubctl.cli.options import remote_option
from hubctl.cli.output import Output, json_option

if TYPE_CHECKING:
    from hubctl.adapter.diff import Difference, LayerChange

SHOWN_LAYERS = 30

component_option = click.option(
    "--component",
    type=click.Choice(["unet", "transformer", "text_encoder", "text_encoder_2"]),
    help="The part of a pipeline that a peft folder is for, if it does not say.",
)
output_option = click.option(
    "-o", "--output", "target", metavar="DIR", type=click.Path(path_type=Path), required=True,
    help="The folder to make.",
)  # fmt: skip
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace DIR if it is there.")


@click.command()
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option("--all", "everything", is_flag=True, help=f"Every layer, not the first {SHOWN_LAYERS}.")
@component_option
@remote_option
@json_option
@click.pass_obj
def diff(
    output: Output, first: str, second: str, everything: bool, component: str | None, remote: str | None
) -> None:
    """Show what differs between two adapters: files, card, settings, and each layer's change of weights.

    A and B are folders, weights files or names on a registry, of any dialect. What changed most comes first:
    `change` is the norm of the difference of the two ΔW, `cosine` is 1 where they have the same direction.

    \b
    Examples:
      hubctl diff my-lora my-lora-v2
      hubctl diff alice/line-art@v1 alice/line-art --json
    """
    from dataclasses import asdict

    from hubctl.adapter.diff import diff as compare

    found = compare(locate(first, remote), locate(second, remote), component)
    if output.json or output.quiet:
        relative = found.change / found.norm[0] if found.norm[0] else None
        output.result({"a": first, "b": second, "relative_change": relative, **asdict(found)}, quiet="change")
        return
    show_difference(output, found, everything=everything)


def show_difference(output: Output, found: Difference, *, everything: bool = False) -> None:
    """Print what differs, for people: papers first, then the layers that changed most."""
    _papers(output, found)
    shown = found.layers if everything else found.layers[:SHOWN_LAYERS]
    output.table(
        [_row(layer) for layer in shown],
        {
            "layer": "layer", "rank": "rank", "alpha": "alpha", "norm": "norm of ΔW", "cosine": "cosine",
            "change": "change",
        },
    )  # fmt: skip
    if rest := len(found.layers) - len(shown):
        output.note(f"  and {rest} layers that changed less: --all")


@click.command()
@click.argument("source", metavar="SRC")
@click.option(
    "--to", "dialect", type=click.Choice(["diffusers", "peft", "kohya"]), required=True, help="The form."
)
@output_option
@click.option(
    "--former-names",
    is_flag=True,
    help="peft: layers as transformers 4 called them; kohya: as Stability's SDXL UNet does (sd-scripts).",
)
@component_option
@overwrite_option
@remote_option
@json_option
@click.pass_obj
def convert(
    output: Output,
    source: str,
    dialect: Any,
    target: Path,
    former_names: bool,
    component: str | None,
    overwrite: bool,
    remote: str | None,
) -> None:
    """Write an adapter in the form of another library: diffusers, peft or kohya (A1111, ComfyUI).

    Numbers stay bit by bit; names, alphas and settings become those of the form. What a form has no place for
    is refused by name. peft knows one model at a time: an adapter of several gets a subfolder for each.

    \b
    Examples:
      hubctl convert civitai.safetensors --to diffusers -o my-lora
      hubctl convert my-lora --to kohya -o my-lora-a1111
      hubctl convert alice/pets --to peft --former-names -o pets-transformers-4
    """
    from hubctl.adapter.derive import convert as write
    from hubctl.adapter.papers import base_named

    adapter = write(
        locate(source, remote),
        target,
        dialect,
        component=component,
        spelling="former" if former_names else "current",
        overwrite=overwrite,
    )
    output.result(
        {
            "path": target,
            "from": adapter.dialect,
            "to": dialect,
            "components": adapter.components,
            "layers": len(adapter.layers),
            "whole_tensors": len(adapter.heads),
        },
        text=f"{target}: {len(adapter.layers)} layers ({', '.join(adapter.components)}), "
        f"{adapter.dialect} → {dialect}",
        quiet="path",
    )
    if dialect != "kohya":
        output.note(f"  next: hubctl check {target}{'' if base_named(target) else ' --base BASE'}")


@click.command()
@click.argument("sources", metavar="A B ...", nargs=-1, required=True)
@click.option("--weights", metavar="W,W,...", help="One for each; default: equal shares of 1.")
@click.option(
    "--method", type=click.Choice(["linear", "svd", "cat"]), default="svd", show_default=True,
    help="peft's: cat is exact and as high as all together, svd the nearest of --rank, linear is rough.",
)  # fmt: skip
@click.option("--rank", type=click.IntRange(1, 1024), help="svd: of the result; default: the highest of all.")
@output_option
@click.option("--base", metavar="REF", help="The base that they share; default: what their cards say.")
@component_option
@overwrite_option
@remote_option
@json_option
@click.pass_obj
def merge(
    output: Output,
    sources: tuple[str, ...],
    weights: str | None,
    method: Any,
    rank: int | None,
    target: Path,
    base: str | None,
    component: str | None,
    overwrite: bool,
    remote: str | None,
) -> None:
    """Add several adapters of one base into one, by peft's methods.

    \b
    Examples:
      hubctl merge line-art water-colour --weights 0.7,0.3 -o both
      hubctl merge alice/a alice/b --method cat -o both
    """
    from hubctl.adapter.derive import Share, merged
    from hubctl.errors import InputError

    if len(sources) < 2:
        raise InputError("merging takes two adapters or more", hint="hubctl merge A B -o DIR")
    shares = _weights(weights, len(sources))
    paths = [locate(source, remote) for source in sources]
    made = merged(
        [
            # Cards are for others: a folder is named, not where it lies.
            Share(name=path.resolve().name if Path(source).exists() else source, path=path, weight=weight)
            for source, path, weight in zip(sources, paths, shares, strict=True)
        ],
        target,
        method,
        rank=rank,
        base=base,
        component=component,
        overwrite=overwrite,
    )
    ranks = sorted({layer.rank for layer in made.layers})
    output.result(
        {"path": target, "method": method, "weights": shares, "layers": len(made.layers), "ranks": ranks},
        text=f"{target}: {len(made.layers)} layers, rank {', '.join(map(str, ranks))}",
        quiet="path",
    )


@click.command()
@click.argument("source", metavar="SRC")
@click.option("--rank", type=click.IntRange(1, 1024), required=True, help="The highest that a layer keeps.")
@output_option
@component_option
@overwrite_option
@remote_option
@json_option
@click.pass_obj
def resize(
    output: Output,
    source: str,
    rank: int,
    target: Path,
    component: str | None,
    overwrite: bool,
    remote: str | None,
) -> None:
    """Cut an adapter to a lower rank, and say what that costs.

    Each layer's ΔW becomes the nearest one of that rank. `error` is the norm of what is lost over that of ΔW.

    \b
    Examples:
      hubctl resize my-lora --rank 4 -o my-lora-4
    """
    from dataclasses import asdict

    from hubctl.adapter.derive import resized

    made = resized(locate(source, remote), target, rank, component=component, overwrite=overwrite)
    groups, total = made.groups, made.total
    if output.json or output.quiet:
        tables = [{**asdict(loss), "relative": loss.relative} for loss in (total, *groups)]
        output.result({"path": target, "rank": rank, "total": tables[0], "groups": tables[1:]}, quiet="path")
        return
    output.table(
        [
            {"group": g.group, "layers": g.layers, "norm": f"{g.norm:.4g}", "error": f"{g.relative:.2%}"}
            for g in (*groups, total)
        ],
        {"group": "group", "layers": "layers", "norm": "norm of ΔW", "error": "error"},
    )
    output.note(f"{target}: rank {rank}, ΔW differs by {total.relative:.2%}. {made.note}".rstrip())


def locate(text: str, remote: str | None) -> Path:
    """The folder or file `text`, or the cached folder of the adapter of that name on a registry.

    Raises:
        NotFoundError: neither is there.
    """
    from hubctl.errors import InputError, NotFoundError
    from hubctl.hub.pull import pull
    from hubctl.hub.remotes import connect
    from hubctl.refs import AdapterRef

    path = Path(text)
    if path.exists():
        return path
    try:
        ref = AdapterRef.parse(text)
    except InputError as error:
        raise NotFoundError(
            f"no folder or file {text}", hint="name a folder, a weights file, or OWNER/NAME on a registry"
        ) from error
    return pull(connect(remote), ref).path


def _papers(output: Output, found: Difference) -> None:
    relative = f"{found.change / found.norm[0]:.2%} of A's" if found.norm[0] else "A changes nothing"
    direction = "" if found.cosine is None else f", cosine {found.cosine:.4f}"
    output.text(f"ΔW of all layers: {found.norm[0]:.4g} in A, {found.norm[1]:.4g} in B{direction}")
    output.text(f"change: {found.change:.4g} ({relative})")
    if found.dialects[0] != found.dialects[1]:
        output.text(f"dialect: {found.dialects[0]} → {found.dialects[1]}")
    for name, how in found.files.items():
        output.text(f"file {how}: {name}")
    for what, table in (("card", found.card), ("settings", found.settings)):
        for name, (one, two) in table.items():
            output.text(f"{what}: {name}: {_short(one)} → {_short(two)}")
    for word, names in (("added", found.added), ("removed", found.removed)):
        if names:
            output.text(f"layers {word}: {len(names)} ({names[0]}{', ...' if len(names) > 1 else ''})")
    output.text("")


def _row(layer: LayerChange) -> dict[str, Any]:
    return {
        "layer": layer.layer,
        "rank": _pair(layer.rank),
        "alpha": _pair(layer.alpha),
        "norm": _pair(layer.norm),
        "cosine": None if layer.cosine is None else f"{layer.cosine:.4f}",
        "change": f"{layer.change:.4g}",
    }


def _pair(values: tuple[float | None, float | None]) -> str:
    one, two = ("-" if value is None else f"{value:.4g}" for value in values)
    return one if one == two else f"{one} → {two}"


def _short(value: object) -> str:
    text = "-" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _weights(text: str | None, count: int) -> list[float]:
    """The weights of `count` adapters.

    Raises:
        InputError: another number of them, or one that is no number.
    """
    from hubctl.errors import InputError

    if text is None:
        return [1 / count] * count
    try:
        weights = [float(word) for word in text.split(",")]
    except ValueError:
        weights = []
    if len(weights) != count or not all(map(math.isfinite, weights)):
        raise InputError(f"'{text}' is not {count} numbers", hint="--weights 0.7,0.3")
    return weights
