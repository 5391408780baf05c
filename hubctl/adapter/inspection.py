"""Everything that can be said of an adapter's file without running it, whether hubctl runs it or not.

Only what is broken is an error here; what hubctl does not run, and what looks wrong, is a finding with a code
that does not change from version to version.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hubctl.adapter.dialect import DIALECTS, Recognised, recognise
from hubctl.adapter.findings import SERVED_DIALECTS, Finding, find_oddities
from hubctl.adapter.fingerprint import family_of
from hubctl.adapter.gate import gate_headers, refuse_unsafe_files
from hubctl.adapter.header import Header, read_header
from hubctl.adapter.layer_shapes import LayerShapes
from hubctl.adapter.layout import CONFIG_PEFT, AdapterLayout, read_config
from hubctl.adapter.metadata import StatedBase, TriggerWords, stated_bases, trigger_words
from hubctl.adapter.new_tokens import is_tokens_file, read_new_tokens
from hubctl.adapter.values import Values, look_at_values, number_in
from hubctl.errors import AdapterError


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerReport:
    """One adapted layer."""

    layer: str
    kind: str
    rank: int | None
    alpha: float | None
    scale: float | None
    """What the product of the halves is multiplied by; None when it is not known."""
    a: tuple[int, ...] | None
    b: tuple[int, ...] | None
    conv: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Inspection:
    """The report of one weights file."""

    weights: str
    bytes: int
    header_bytes: int
    dialect: str
    dialect_title: str
    kinds: dict[str, int]
    """Kind of adapter → layers."""
    served: bool
    """hubctl's server takes it as it is."""
    components: dict[str, int]
    """Component → layers."""
    modules: int
    convolutions: int
    tensors: int
    whole_tensors: int
    parameters: int
    dtypes: dict[str, int]
    """Data type → tensors of weights."""
    ranks: dict[int, int]
    """Rank → layers."""
    alphas: tuple[float, ...]
    scales: tuple[float, ...]
    values: Values | None
    """None when they were not looked at."""
    trigger_words: tuple[TriggerWords, ...]
    new_tokens: tuple[str, ...]
    """Words of its own, whose vectors lie in a file beside the weights."""
    base_stated: tuple[StatedBase, ...]
    base_shapes: str | None
    """The family that names and widths of the layers point to."""
    warnings: tuple[Finding, ...]
    layers: tuple[LayerReport, ...]


def inspect_adapter(
    weights: Path,
    *,
    card: Mapping[str, Any] | None = None,
    manifest: Mapping[str, Any] | None = None,
    beside: Sequence[str] = (),
    look: bool = True,
) -> Inspection:
    """Report on the weights file `weights`, with peft's settings beside it if there are any.

    `card` and `manifest` are what README.md and hubctl.json hold; `beside` the names of the adapter's other
    files. Without `look` no tensor is read, so that a file with a header alone will do.

    Raises:
        AdapterError: the file is a pickle, or no sound safetensors file.
    """
    refuse_unsafe_files(weights)
    header = read_header(weights)
    config_file = weights.parent / CONFIG_PEFT
    config = read_config(config_file) if config_file.is_file() else None
    found = recognise(header, config)
    layout, refusal = _layout(weights, found)
    new_tokens, tokens_refusal = _new_tokens(weights.parent, beside)
    values = look_at_values(weights, header, found.layers) if look else None
    reports = _layers(found, layout, header, weights if look else None, config or {})
    stated = stated_bases(header.metadata, card or {}, manifest or {}, config or {})
    family = family_of(layer.place for layer in found.layers)
    alphas = found.alphas
    numbers = [tensor for key, tensor in header.tensors.items() if key not in alphas]
    oddities = find_oddities(
        found, header, values, stated=stated, family=family, beside=beside, refusal=refusal or tokens_refusal
    )
    with weights.open("rb") as file:
        header_bytes = 8 + int.from_bytes(file.read(8), "little")
    return Inspection(
        weights=weights.name,
        bytes=weights.stat().st_size,
        header_bytes=header_bytes,
        dialect=found.dialect,
        dialect_title=DIALECTS[found.dialect],
        kinds=dict(found.kinds.most_common()),
        served=layout is not None and not tokens_refusal and not (values and values.non_finite),
        components=dict(sorted(Counter(layer.component for layer in found.layers).items())),
        modules=len(found.layers),
        convolutions=sum(layer.conv for layer in found.layers),
        tensors=len(header.tensors),
        whole_tensors=len(found.whole),
        parameters=sum(math.prod(tensor.shape) for tensor in numbers),
        dtypes=dict(Counter(tensor.dtype for tensor in numbers).most_common()),
        ranks=dict(sorted(Counter(r.rank for r in reports if r.rank is not None).items())),
        alphas=tuple(sorted({r.alpha for r in reports if r.alpha is not None})),
        scales=tuple(sorted({round(r.scale, 6) for r in reports if r.scale is not None})),
        values=values,
        trigger_words=trigger_words(header.metadata, card or {}, manifest or {}),
        new_tokens=new_tokens,
        base_stated=stated,
        base_shapes=family,
        warnings=oddities,
        layers=reports,
    )


def as_data(report: Inspection) -> dict[str, Any]:
    """The report as JSON-ready data; `values` says whether they were looked at."""
    data = dataclasses.asdict(report)
    return data | {"values": {"looked_at": report.values is not None, **(data["values"] or {})}}


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _layout(weights: Path, found: Recognised) -> tuple[AdapterLayout | None, str]:
    """What the gate makes of the adapter, or why it refuses it."""
    if found.dialect not in SERVED_DIALECTS:
        return None, ""
    try:
        return gate_headers(weights), ""
    except AdapterError as error:
        return None, error.message


def _new_tokens(folder: Path, beside: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """The names of the adapter's new tokens, or why the gate refuses them."""
    if not any(is_tokens_file(name) for name in beside):
        return (), ""
    try:
        found = read_new_tokens(folder)
    except AdapterError as error:
        return (), error.message
    return found.names if found else (), ""


def _layers(
    found: Recognised,
    layout: AdapterLayout | None,
    header: Header,
    readable: Path | None,
    config: Mapping[str, Any],
) -> tuple[LayerReport, ...]:
    known = {m.a_key: m for m in layout.modules} if layout else {}
    reports = []
    for layer in found.layers:
        module = known.get(layer.keys.get("A", ""))
        rank = module.rank if module else layer.rank
        alpha = module.alpha if module else _alpha(layer, header, readable, config)
        scale = module.scale if module else _scale(layer, alpha)
        a, b = layer.shapes.get("A"), layer.shapes.get("B")
        reports.append(
            LayerReport(
                layer=f"{layer.component}.{module.module if module else layer.module}",
                kind="DoRA" if layer.kind == "LoRA" and "M" in layer.keys else layer.kind,
                rank=rank, alpha=alpha, scale=scale, a=a, b=b, conv=layer.conv,
            )
        )  # fmt: skip
    return tuple(reports)


def _scale(layer: LayerShapes, alpha: float | None) -> float | None:
    if layer.kind == "LoKr" and layer.rank is None:
        return 1.0  # both matrices are whole: LyCORIS leaves alpha out then
    return alpha / layer.rank if alpha is not None and layer.rank else None


def _alpha(
    layer: LayerShapes, header: Header, readable: Path | None, config: Mapping[str, Any]
) -> float | None:
    """A layer's alpha: its own tensor's value, or what stands for it where values are not read."""
    if key := layer.keys.get("alpha"):
        if readable:
            return number_in(readable, header.tensors[key])
        stated: Any = header.metadata.get("ss_network_alpha") if not layer.conv else None
    else:
        stated = config.get("lora_alpha", config.get("alpha"))
        stated = layer.rank if stated is None else stated
    try:
        number = float(stated) if stated is not None else math.nan
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
