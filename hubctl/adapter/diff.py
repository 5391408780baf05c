"""What differs between two adapters: files, card, settings, and every layer's ΔW."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hubctl.adapter.card import read_card_data
from hubctl.adapter.contents import Adapter, read_adapter
from hubctl.adapter.layers import Layer, Whole
from hubctl.adapter.low_rank import Factors, cosine, distance, factors, inner, single
from hubctl.adapter.package import read_manifest
from hubctl.adapter.tensors import to_array

_PER_LAYER = {"r", "lora_alpha", "rank_pattern", "alpha_pattern", "target_modules"}


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerChange:
    """One layer (or tensor of a head) in both adapters; None where one of them lacks it."""

    layer: str
    rank: tuple[int | None, int | None]
    alpha: tuple[float | None, float | None]
    scale: tuple[float | None, float | None]
    norm: tuple[float | None, float | None]
    """Frobenius norm of ΔW, the scale included; of a head's tensor, its own."""
    cosine: float | None
    """Between the two ΔW; None where one is missing or zero."""
    change: float
    """Frobenius norm of the difference of the two ΔW."""
    magnitude_change: float | None = None
    """DoRA: norm of the difference of the magnitudes over that of the first's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """Two adapters side by side; pairs and tables are (first, second)."""

    dialects: tuple[str, str]
    files: Mapping[str, str]
    """Path → `added`, `removed` or `changed`; of folders."""
    card: Mapping[str, tuple[Any, Any]]
    """Fields of the card's header that differ."""
    settings: Mapping[str, tuple[Any, Any]]
    """Entries of the manifest and of adapter_config.json that differ."""
    added: tuple[str, ...]
    removed: tuple[str, ...]
    layers: tuple[LayerChange, ...]
    """What changed most comes first."""
    norm: tuple[float, float]
    """Of all ΔW together."""
    cosine: float | None
    """Between all ΔW together."""
    change: float


def diff(first: Path, second: Path, component: str | None = None) -> Difference:
    """Compare the adapters in two folders or files, of whatever dialects.

    Raises:
        AdapterError: one of them is not a LoRA that hubctl reads.
        NotFoundError: one is not there.
    """
    one, two = read_adapter(first, component), read_adapter(second, component)
    layers, product = _layer_changes(one, two)
    norm = (_total(change.norm[0] for change in layers), _total(change.norm[1] for change in layers))
    size = norm[0] * norm[1]
    names = [{change.layer for change in layers if change.norm[side] is not None} for side in (0, 1)]
    return Difference(
        dialects=(one.dialect, two.dialect),
        files=_file_changes(first, second),
        card=_changes(*(read_card_data(path) if path.is_dir() else {} for path in (first, second))),
        settings=_changes(_settings(first, one), _settings(second, two)),
        added=tuple(sorted(names[1] - names[0])),
        removed=tuple(sorted(names[0] - names[1])),
        layers=tuple(sorted(layers, key=lambda change: (-change.change, change.layer))),
        norm=norm,
        cosine=max(-1.0, min(1.0, product / size)) if size else None,
        change=_total(change.change for change in layers),
    )


def _layer_changes(one: Adapter, two: Adapter) -> tuple[list[LayerChange], float]:
    """Every layer's change, and the inner product of all ΔW together."""
    parts = [_parts(adapter) for adapter in (one, two)]
    changes, inner_product = [], 0.0
    for where in sorted(parts[0].keys() | parts[1].keys()):
        pair = parts[0].get(where), parts[1].get(where)
        x, y = map(_factors, pair)
        if x is not None and y is not None and x.shape == y.shape:
            inner_product += inner(x, y)
        changes.append(_layer_change(where, pair, x, y))
    return changes, inner_product


def _parts(adapter: Adapter) -> dict[str, Layer | Whole]:
    layers: dict[str, Layer | Whole] = {layer.where: layer for layer in adapter.layers}
    return layers | {f"model.{head.name}": head for head in adapter.heads}


def _factors(part: Layer | Whole | None) -> Factors | None:
    if isinstance(part, Whole):
        return single(to_array(part.tensor, part.name))
    return None if part is None else factors(part)


def _layer_change(
    where: str, pair: tuple[Layer | Whole | None, Layer | Whole | None], x: Factors | None, y: Factors | None
) -> LayerChange:
    one, two = (part if isinstance(part, Layer) else None for part in pair)
    return LayerChange(
        layer=where,
        rank=(one.rank if one else None, two.rank if two else None),
        alpha=(one.alpha if one else None, two.alpha if two else None),
        scale=(one.scale if one else None, two.scale if two else None),
        norm=(x.norm if x else None, y.norm if y else None),
        cosine=cosine(x, y) if x is not None and y is not None and x.shape == y.shape else None,
        # Rounding would leave 1e-8 of the norm between parts that are equal.
        change=0.0 if _same(*pair) else _change(x, y),
        magnitude_change=_magnitude_change(one, two),
    )


def _same(one: Layer | Whole | None, two: Layer | Whole | None) -> bool:
    if isinstance(one, Layer) and isinstance(two, Layer):
        return (one.a, one.b, one.scale) == (two.a, two.b, two.scale)
    return isinstance(one, Whole) and isinstance(two, Whole) and one.tensor == two.tensor


def _change(x: Factors | None, y: Factors | None) -> float:
    if x is not None and y is not None and x.shape == y.shape:
        return distance(x, y)
    # A part that only one has, or that has another size: nothing in common.
    return math.hypot(*(z.norm for z in (x, y) if z is not None))


def _magnitude_change(one: Layer | None, two: Layer | None) -> float | None:
    if one is None or two is None or one.magnitude is None or two.magnitude is None:
        return None
    x, y = (single(to_array(magnitude)) for magnitude in (one.magnitude, two.magnitude))
    return _change(x, y) / (x.norm or 1.0)


def _total(norms: Iterable[float | None]) -> float:
    return math.hypot(*(norm for norm in norms if norm is not None))


def _file_changes(first: Path, second: Path) -> dict[str, str]:
    one, two = (_digests(path) for path in (first, second))
    changes = dict.fromkeys(one.keys() - two.keys(), "removed")
    changes |= dict.fromkeys(two.keys() - one.keys(), "added")
    changes |= {name: "changed" for name in one.keys() & two.keys() if one[name] != two[name]}
    return dict(sorted(changes.items()))


def _digests(path: Path) -> dict[str, str]:
    """sha256 of every file of a folder that is not hidden, by its path there."""
    found = {}
    for file in path.rglob("*") if path.is_dir() else ():
        inner_path = file.relative_to(path)
        if file.is_file() and not any(part.startswith(".") for part in inner_path.parts):
            with file.open("rb") as opened:
                found[inner_path.as_posix()] = hashlib.file_digest(opened, "sha256").hexdigest()
    return found


def _settings(path: Path, adapter: Adapter) -> dict[str, Any]:
    """What the manifest and adapter_config.json say, flat; without the layers' own numbers."""
    manifest = read_manifest(path) if path.is_dir() else None
    told = _flat(dataclasses.asdict(manifest)) if manifest else {}
    own = {f"config.{k}": v for k, v in (adapter.config or {}).items() if k not in _PER_LAYER}
    return told | own


def _flat(table: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in table.items():
        found |= _flat(value, f"{before}{key}.") if isinstance(value, dict) else {f"{before}{key}": value}
    return found


def _changes(one: Mapping[str, Any], two: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    keys = sorted(one.keys() | two.keys())
    return {key: (one.get(key), two.get(key)) for key in keys if one.get(key) != two.get(key)}
