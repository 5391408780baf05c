"""A new adapter folder out of others: read, changed, written whole or not at all, and past the gate."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import hubctl
from hubctl.adapter.card import CARD, Card, render_card
from hubctl.adapter.contents import Adapter, Dialect, read_adapter
from hubctl.adapter.gate import gate
from hubctl.adapter.header import non_finite, read_header
from hubctl.adapter.merge import Method, merge
from hubctl.adapter.new_tokens import is_tokens_file, read_new_tokens
from hubctl.adapter.package import (
    MANIFEST,
    BaseIdentity,
    Manifest,
    manifest_json,
    new_folder,
    read_manifest,
    refuse_existing,
    refuse_inputs,
)
from hubctl.adapter.papers import base_named, carry_papers, note_change
from hubctl.adapter.resize import Loss, losses, resize
from hubctl.adapter.save import Spelling, save_adapter
from hubctl.errors import AdapterError, AdapterMismatchError
from hubctl.families import Task


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """One adapter of several that are merged."""

    name: str
    """What the card calls it."""
    path: Path
    weight: float


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Resized:
    """An adapter of lower rank, and what it lost."""

    adapter: Adapter
    groups: Sequence[Loss]
    total: Loss

    @property
    def note(self) -> str:
        """What the losses do not tell, in a sentence; empty for plain LoRA."""
        dora = any(layer.magnitude is not None for layer in self.adapter.layers)
        return "DoRA's magnitudes are the former ones, and not part of this figure." if dora else ""


def convert(
    source: Path,
    target: Path,
    dialect: Dialect,
    *,
    component: str | None = None,
    spelling: Spelling = "current",
    overwrite: bool = False,
) -> Adapter:
    """Write the adapter at `source` to the folder `target` in another dialect, its papers with it.

    Raises:
        AdapterError: the dialect has no place for a part of it; the part is named.
        ConflictError: `target` is there, and `overwrite` is false.
    """
    refuse_inputs(target, [source])
    refuse_existing(target, overwrite=overwrite)
    adapter = read_adapter(source, component)
    base = base_named(source, adapter.config)
    with new_folder(target, overwrite=overwrite) as folder:
        save_adapter(adapter, folder, dialect, name=target.absolute().name, base=base, spelling=spelling)
        carry_papers(source, folder, library=_library(dialect))
        _gate(folder, adapter, dialect)
    return adapter


def resized(
    source: Path, target: Path, rank: int, *, component: str | None = None, overwrite: bool = False
) -> Resized:
    """Write the adapter at `source` to `target` with layers of at most `rank`, in its own dialect.

    Its papers come along and say what it lost.

    Raises:
        AdapterError: it has no layers with LoRA, only modules that are saved whole.
    """
    refuse_inputs(target, [source])
    refuse_existing(target, overwrite=overwrite)
    before = read_adapter(source, component)
    if not before.layers:
        raise AdapterError(f"{source} has no LoRA layers to resize, only whole modules")
    after = resize(before, rank)
    groups, total = losses(before, after)
    result = Resized(adapter=after, groups=groups, total=total)
    base = base_named(source, before.config)
    with new_folder(target, overwrite=overwrite) as folder:
        save_adapter(after, folder, before.dialect, name=target.absolute().name, base=base)
        carry_papers(source, folder, library=_library(before.dialect))
        note_change(
            folder,
            "Resized",
            f"Cut to rank {rank} with hubctl {hubctl.__version__}: ΔW differs by {total.relative:.2%} from "
            f"that of the adapter it was made from, which all figures above are of. {result.note}".rstrip(),
            {"resized": {"rank": rank, "relative_error": round(total.relative, 6)}},
        )
        _gate(folder, after, before.dialect)
    return result


def merged(
    shares: Sequence[Share],
    target: Path,
    method: Method,
    *,
    rank: int | None = None,
    base: str | None = None,
    component: str | None = None,
    overwrite: bool = False,
) -> Adapter:
    """Write the weighted sum of several adapters to `target`, in the first one's dialect.

    `base` names the base that they are for; by default what their papers say.

    Raises:
        AdapterError: one has tokens of its own.
        AdapterMismatchError: their papers name different bases.
    """
    refuse_inputs(target, [share.path for share in shares])
    refuse_existing(target, overwrite=overwrite)
    adapters = [read_adapter(share.path, component) for share in shares]
    if own := [share.name for share in shares if share.path.is_dir() and read_new_tokens(share.path)]:
        raise AdapterError(
            f"{own[0]} has new tokens, which are words and no weights to add up",
            hint="name both adapters in one request instead",
        )
    named = {
        share.name: base_named(share.path, adapter.config)
        for share, adapter in zip(shares, adapters, strict=True)
    }
    known = sorted({found for found in named.values() if found})
    if base is None and len(known) > 1:
        raise AdapterMismatchError(
            f"the adapters are for different bases: {', '.join(known)}",
            hint="name the one they share: --base",
        )
    base = base or next(iter(known), None)
    result = merge(adapters, [share.weight for share in shares], method, rank)
    with new_folder(target, overwrite=overwrite) as folder:
        save_adapter(result, folder, result.dialect, name=target.absolute().name, base=base)
        if base:
            _write_papers(folder, target.absolute().name, result, base, shares, method)
        _gate(folder, result, result.dialect)
    return result


def _gate(folder: Path, adapter: Adapter, dialect: Dialect) -> None:
    """Judge what was written as any other adapter; the gate itself takes no kohya files, from nobody."""
    if dialect == "kohya":
        (weights,) = (file for file in folder.glob("*.safetensors") if not is_tokens_file(file.name))
        if bad := non_finite(weights, read_header(weights)):
            raise AdapterError(f"'{bad[0]}' holds NaN or infinity", hint="take an earlier checkpoint")
    elif dialect == "peft" and len(adapter.components) > 1:
        for component in adapter.components:
            gate(folder / component, None)
    else:
        gate(folder, None)


def _library(dialect: Dialect) -> str:
    return "peft" if dialect == "peft" else "diffusers"


def _write_papers(
    folder: Path, title: str, adapter: Adapter, base: str, shares: Sequence[Share], method: Method
) -> None:
    manifests = [read_manifest(share.path) if share.path.is_dir() else None for share in shares]
    first = next((manifest for manifest in manifests if manifest), None)
    identity = first.base if first and first.base.id == base else BaseIdentity(id=base)
    task: Task = "image-segmentation" if adapter.components == ("model",) else "text-to-image"
    manifest = Manifest(
        task=first.task if first else task,
        base=identity,
        settings={"merged": [[share.name, share.weight] for share in shares], "method": method},
        versions={"hubctl": hubctl.__version__},
    )
    (folder / MANIFEST).write_text(manifest_json(manifest), encoding="utf-8")
    listed = " + ".join(f"{share.weight:g} x `{share.name}`" for share in shares)
    card = Card(
        title=title,
        base_model=base,
        task=task,
        library=_library(adapter.dialect),
        summary=f"{listed}, merged by peft's method `{method}`: a LoRA adapter for `{base}`.",
    )
    (folder / CARD).write_text(render_card(card), encoding="utf-8")
