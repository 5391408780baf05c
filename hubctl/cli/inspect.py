"""`hubctl inspect, check`: what an adapter is, and whether it fits a base, wherever the two are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import click

from hubctl.cli.options import remote_option
from hubctl.cli.output import Output, human_bytes, json_option

if TYPE_CHECKING:
    from hubctl.adapter.inspection import Inspection
    from hubctl.hub.push import Compared
    from hubctl.hub.sources import Source

EXIT_CODES = {"fits": 0, "partly": 10, "wrong-base": 11}
"""Of `check`, by its verdict; faults have those of `hubctl.cli.main`."""
SHOWN_PROBLEMS = 10
SHOWN_LAYERS = 20


@click.command()
@click.argument("what", metavar="ADAPTER")
@click.option("--file", metavar="NAME", help="The weights file, where there are several.")
@click.option("--layers", "every_layer", is_flag=True, help=f"List all layers, not the first {SHOWN_LAYERS}.")
@remote_option
@json_option
@click.pass_obj
def inspect(output: Output, what: str, file: str | None, every_layer: bool, remote: str | None) -> None:
    """Show what an adapter is: dialect, layers, ranks, scale, base, its words, and what looks wrong.

    ADAPTER is a folder or weights file, OWNER/NAME[@REV] on a registry, or the address of a file there. Every
    dialect is read, also those that hubctl does not serve. Of an adapter on a registry only the header comes
    over the network, so its values are not looked at.

    \b
    Examples:
      hubctl inspect my-lora
      hubctl inspect alice/line-art@v2 --json
      hubctl inspect downloads/style.safetensors --layers
      hubctl inspect https://huggingface.co/alice/line-art/resolve/main/line-art.safetensors

    \b
    Warning codes (stable):
      unpaired              a layer lacks one of its tensors, A or B
      bad-shape             A and B of a layer do not go together
      unknown-keys          tensors that no kind of adapter has
      non-finite            NaN or infinity
      untrained             every layer multiplies by zero: the adapter changes nothing
      idle-layers           some layers do
      no-alpha              no alpha is stated: alpha = rank, scale 1, is assumed
      mixed-ranks           several ranks
      mixed-dtypes          several data types
      no-base               nothing states the base
      base-mismatch         what is stated of the base and what the shapes say differ
      unsupported-dialect   hubctl does not serve this spelling as it is
      unsupported-kind      hubctl does not serve this kind (LoHa, LoKr, OFT, ...)
      refused               push and the server refuse it for another reason
      pickle, code          such a file lies beside the weights
      local-paths           the metadata names folders of the machine it was trained on
    """
    from hubctl.adapter.inspection import inspect_adapter
    from hubctl.hub.remotes import connect
    from hubctl.hub.sources import open_adapter

    with open_adapter(what, lambda: connect(remote), file=file) as source:
        report = inspect_adapter(
            source.weights,
            card=source.card,
            manifest=source.manifest,
            beside=source.beside,
            look=source.local,
        )
    if output.json or output.quiet:
        output.result(_data(source, report), quiet="dialect")
        return
    output.result(_facts(source, report))
    if report.warnings:
        output.text("")
        output.table([{"code": f.code, "message": f.message} for f in report.warnings],
                     {"code": "warning", "message": "what it means here"})  # fmt: skip
    output.text("")
    shown = report.layers if every_layer else report.layers[:SHOWN_LAYERS]
    columns = ("layer", "rank", "alpha", "scale", "A", "B", "kind")
    output.table(
        [{name: getattr(one, name.lower()) for name in columns} for one in shown],
        {name: name for name in columns},
        formats={"A": _shape, "B": _shape, "alpha": "{:g}".format, "scale": "{:.4g}".format},
        empty="no layers",
    )
    if len(report.layers) > len(shown):
        output.note(f"  and {len(report.layers) - len(shown)} more: hubctl inspect {what} --layers")


@click.command()
@click.argument("what", metavar="ADAPTER")
@click.option("--base", metavar="REF", help="A base model; default: the one that the card names.")
@click.option("--file", metavar="NAME", help="The weights file, where there are several.")
@remote_option
@json_option
@click.pass_obj
def check(output: Output, what: str, base: str | None, file: str | None, remote: str | None) -> int:
    """Say whether an adapter fits a base, from headers alone: every layer and every shape.

    ADAPTER is a folder or weights file, OWNER/NAME[@REV] on a registry, or the address of a file there. No
    values are read: `hubctl inspect` looks for NaN. Kohya's files (Civitai, A1111) are compared as well.

    \b
    Exit codes:
      0   it fits
      10  it fits partly
      11  wrong base: nothing fits, or it was made for another kind of base
      5   hubctl does not run it, or it is broken

    \b
    Examples:
      hubctl check my-lora
      hubctl check my-lora --base emoji-64
      hubctl check alice/line-art --base stabilityai/stable-diffusion-xl-base-1.0 --remote hf
    """
    from hubctl.hub.push import compare
    from hubctl.hub.remotes import connect
    from hubctl.hub.sources import open_adapter

    with open_adapter(what, lambda: connect(remote), file=file) as source:
        folder = source.weights if file and source.local else source.path
        named = base or _base_of(source, what)
        compared = compare(folder, lambda: connect(remote), named, values=False)
        return _show_verdict(output, what, compared)


def _base_of(source: Source, what: str) -> str:
    """The base that the adapter's card names."""
    from hubctl.adapter.card import first_base_model
    from hubctl.adapter.gate import refuse_unsafe_files
    from hubctl.errors import AdapterError
    from hubctl.hub.push import base_model_of

    if source.local:
        refuse_unsafe_files(source.path)
        return base_model_of(source.path)
    if named := first_base_model(source.card):
        return named
    raise AdapterError(
        f"the card of {source.name} names no base_model", hint=f"hubctl check {what} --base REF"
    )


def _show_verdict(output: Output, what: str, compared: Compared) -> int:
    """Print the verdict, and return its exit code: that it does not fit is an answer, not a fault."""
    from hubctl.adapter.fingerprint import TITLES
    from hubctl.hub.describe import describe

    found, fit = describe(compared.layout), compared.fit
    data = {
        "verdict": fit.verdict,
        "fits": fit.fits,
        "matched": fit.matched,
        "total": fit.total,
        "base": compared.base_id,
        "looks_like": fit.looks_like,
        "base_looks_like": fit.base_looks_like,
        "problems": fit.problems,
        **found,
    }
    if fit.fits:
        output.result(data, text=f"{what} fits {compared.base_id}: {found['summary']}", quiet="verdict")
        if compared.layout.dialect == "kohya":
            output.note(f"  next: hubctl convert {what} --to diffusers -o DIR, for push and the server")
        return EXIT_CODES[fit.verdict]
    if fit.verdict == "partly":
        said = f"fits partly ({fit.matched} of {fit.total} parts)"
    else:
        like = f": looks like {TITLES[fit.looks_like]}" if fit.looks_like else ""
        said = f"wrong base{like} ({fit.matched} of {fit.total} parts fit)"
    lines = [said, *(f"  {problem}" for problem in fit.problems[:SHOWN_PROBLEMS])]
    if len(fit.problems) > SHOWN_PROBLEMS:
        lines.append(f"  and {len(fit.problems) - SHOWN_PROBLEMS} more")
    output.result(data, text="\n".join(lines), quiet="verdict")
    if fit.verdict == "wrong-base":
        output.note("  next: name the base it was trained on, with --base")
    return EXIT_CODES[fit.verdict]


def _data(source: Source, report: Inspection) -> dict[str, Any]:
    from hubctl.adapter.inspection import as_data, sha256_of

    sha256 = sha256_of(source.weights) if source.local else source.sha256
    return {"name": source.name, "sha256": sha256, **as_data(report)}


def _facts(source: Source, report: Inspection) -> dict[str, Any]:
    """The report's head, for people."""
    from hubctl.adapter.fingerprint import TITLES

    values = report.values
    looked = "not looked at: only the header was read"
    if values:
        counts = {"tensors not finite": len(values.non_finite), "layers idle": len(values.idle)}
        looked = ", ".join(f"{count} {what}" for what, count in counts.items() if count) or "finite, trained"
    summary = (
        f"{report.modules} layers ({_counts(report.components, '{1} in {0}')})"
        f"{f', {report.convolutions} of them convolutions' if report.convolutions else ''}, rank"
        f" {_span(report.ranks)}, alpha {_span(report.alphas)}, scale {_span(report.scales)}"
        f"{f', {report.whole_tensors} whole tensors' if report.whole_tensors else ''}"
    )
    return {
        "adapter": source.name,
        "weights": f"{report.weights}, {human_bytes(report.bytes)}, {report.parameters:,} parameters",
        "dialect": report.dialect_title,
        "kind": _counts(report.kinds, "{0} x {1}"),
        "served": "yes" if report.served else "no",
        "layers": summary,
        "ranks": _counts(report.ranks, "{0} x {1}"),
        "dtype": _counts(report.dtypes, "{0} x {1}"),
        "values": looked,
        "base stated": "; ".join(f"{one.base} ({one.source})" for one in report.base_stated) or None,
        "base by shapes": TITLES[report.base_shapes] if report.base_shapes else "not told by them",
        "trigger words": "; ".join(f"{one.words} ({one.source})" for one in report.trigger_words) or None,
        "new tokens": ", ".join(report.new_tokens) or None,
    }


def _counts(counts: Mapping[Any, int], form: str) -> str:
    return ", ".join(form.format(name, count) for name, count in counts.items()) or "-"


def _span(values: Iterable[float]) -> str:
    found = sorted(values)
    if not found:
        return "not known"
    low, high = found[0], found[-1]
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
