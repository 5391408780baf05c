"""What to know before using an adapter, each with a code that stays the same from version to version."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hubctl.adapter.dialect import DIALECTS, Recognised
from hubctl.adapter.fingerprint import TITLES
from hubctl.adapter.gate import CODE, PICKLES
from hubctl.adapter.header import Header
from hubctl.adapter.layer_shapes import LayerShapes
from hubctl.adapter.metadata import StatedBase, private_fields
from hubctl.adapter.values import Values

CODES = {
    "pickle": "a pickle lies beside the weights, which can run code when loaded",
    "code": "a program lies beside the weights",
    "unsupported-dialect": "hubctl does not serve this spelling as it is",
    "unsupported-kind": "hubctl does not serve this kind of adapter (LoHa, LoKr, OFT, ...)",
    "refused": "push and the server refuse it for another reason",
    "unpaired": "a layer lacks one of its tensors: A without B, or B without A",
    "bad-shape": "A and B of a layer do not go together",
    "unknown-keys": "the file has tensors that no kind of adapter has",
    "non-finite": "a tensor holds NaN or infinity",
    "untrained": "every layer multiplies by zero: the adapter changes nothing",
    "idle-layers": "some layers multiply by zero",
    "no-alpha": "no alpha is stated: alpha = rank, scale 1, is assumed",
    "mixed-ranks": "layers have several ranks",
    "mixed-dtypes": "tensors have several data types",
    "no-base": "nothing states which base the adapter is for",
    "base-mismatch": "what is stated of the base and what the shapes say differ",
    "local-paths": "the metadata names folders of the machine it was trained on",
}
"""Codes of findings, and what each means."""

SERVED_KINDS = frozenset({"LoRA"})
SERVED_DIALECTS = frozenset({"diffusers", "peft"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """Something to know before using the adapter."""

    code: str
    """A key of `CODES`, or of those of `hubctl.hub.preflight`."""
    message: str


def find_oddities(
    found: Recognised,
    header: Header,
    values: Values | None,
    *,
    stated: Sequence[StatedBase],
    family: str | None,
    beside: Sequence[str],
    refusal: str,
) -> tuple[Finding, ...]:
    """All findings about one file, in the order of `CODES`.

    `refusal` is why the gate does not let it through, `beside` the names of the adapter's other files.
    """
    told = [
        *_of_files(beside),
        *_of_structure(found),
        *_of_numbers(found, header),
        *_of_values(values, found),
        *_of_base(stated, family),
    ]
    if private := private_fields(header.metadata):
        told.append(("local-paths", f"the metadata holds local paths: {', '.join(private)}"))
    if refusal and not {code for code, _ in told} & {"unsupported-kind", "unpaired", "bad-shape"}:
        told.append(("refused", refusal))
    order = list(CODES)
    return tuple(
        Finding(code=code, message=text) for code, text in sorted(told, key=lambda t: order.index(t[0]))
    )


_Told = Iterator[tuple[str, str]]


def _of_files(beside: Sequence[str]) -> _Told:
    for code, suffixes, what in (("pickle", PICKLES, "a pickle"), ("code", CODE, "a program")):
        names = [name for name in sorted(beside) if Path(name).suffix.lower() in suffixes]
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            yield code, f"{names[0]}{more} is {what}; it was not opened"


def _of_structure(found: Recognised) -> _Told:
    if found.dialect not in SERVED_DIALECTS:
        yield "unsupported-dialect", f"the {DIALECTS[found.dialect]} spelling is not served as it is"
    if other := [kind for kind in found.kinds if kind not in SERVED_KINDS]:
        yield "unsupported-kind", f"{', '.join(other)}: hubctl serves LoRA, rsLoRA and DoRA"
    if unpaired := [layer for layer in found.layers if layer.missing]:
        lacks = f"'{unpaired[0].path[:80]}' has no {' and '.join(unpaired[0].missing)}"
        yield "unpaired", f"{len(unpaired)} of {len(found.layers)} layers lack a tensor: {lacks}"
    if odd := [layer for layer in found.layers if not _goes_together(layer)]:
        a, b = odd[0].shapes["A"], odd[0].shapes["B"]
        yield "bad-shape", f"'{odd[0].path[:80]}' has A {list(a)} and B {list(b)}"
    if found.unknown:
        count, first = len(found.unknown), found.unknown[0][:80]
        yield "unknown-keys", f"{count} tensors belong to no layer, '{first}' first"


def _goes_together(layer: LayerShapes) -> bool:
    a, b = layer.shapes.get("A"), layer.shapes.get("B")
    if layer.kind != "LoRA" or a is None or b is None:
        return True
    return len(a) == len(b) >= 2 and a[0] == b[1] > 0


def _of_numbers(found: Recognised, header: Header) -> _Told:
    ranked = [layer for layer in found.layers if layer.rank is not None]
    states = found.dialect == "peft" or "lora_adapter_metadata" in header.metadata
    if not states and any("alpha" not in layer.keys for layer in ranked):
        yield "no-alpha", "no alpha is stated: alpha = rank, scale 1, is assumed"
    ranks = sorted({layer.rank or 0 for layer in ranked})
    if len(ranks) > 1:
        yield "mixed-ranks", f"ranks {ranks[0]} to {ranks[-1]}, {len(ranks)} different ones"
    alphas = found.alphas
    dtypes = sorted({tensor.dtype for key, tensor in header.tensors.items() if key not in alphas})
    if len(dtypes) > 1:
        yield "mixed-dtypes", f"tensors are {', '.join(dtypes)}"


def _of_values(values: Values | None, found: Recognised) -> _Told:
    if values and values.non_finite:
        count, first = len(values.non_finite), values.non_finite[0]
        yield "non-finite", f"{count} tensors hold NaN or infinity, '{first[:80]}' first"
    if values and values.idle:
        idle, layers = len(values.idle), len(found.layers)
        if idle == layers and not found.whole:
            yield "untrained", "every layer multiplies by zero: the adapter changes nothing"
        else:
            yield "idle-layers", f"{idle} of {layers} layers multiply by zero, '{values.idle[0][:80]}' first"


def _of_base(stated: Sequence[StatedBase], family: str | None) -> _Told:
    if not stated:
        yield "no-base", "nothing states which base the adapter is for"
    for one in stated:
        if family and one.family and one.family != family:
            said = f"{one.source} says {one.base} ({TITLES[one.family]})"
            yield "base-mismatch", f"{said}, the shapes say {TITLES[family]}"
