"""What lies beside an adapter's weights, when its folder becomes another: card, manifest, pictures."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from hubctl.adapter.card import CARD, first_base_model, read_card_data
from hubctl.adapter.gate import CODE, PICKLES
from hubctl.adapter.layout import CONFIG_PEFT
from hubctl.adapter.new_tokens import is_tokens_file
from hubctl.adapter.package import MANIFEST, manifest_json, read_manifest

_LEFT = PICKLES | CODE | {".safetensors"}


def base_named(source: Path, config: Mapping[str, object] | None = None) -> str | None:
    """The base that the papers of `source` name: its card, its manifest, or peft's `config`."""
    if source.is_dir():
        if of_card := first_base_model(read_card_data(source)):
            return of_card
        if manifest := read_manifest(source):
            return manifest.base.id
    named = (config or {}).get("base_model_name_or_path")
    return named if isinstance(named, str) and named else None


def carry_papers(source: Path, folder: Path, *, library: str) -> None:
    """Copy what `source` holds beside its weights into `folder`; the card then names `library`.

    New tokens are in a form that all dialects share. Weights, settings of weights, hidden files, links,
    pickles and code stay behind.
    """
    if not source.is_dir():
        return
    for path in sorted(source.rglob("*")):
        inner = path.relative_to(source)
        hidden = any(part.startswith(".") for part in inner.parts)
        if hidden or path.is_symlink() or not path.is_file():
            continue
        weights = path.suffix.lower() in _LEFT and not is_tokens_file(inner.as_posix())
        if weights or path.name == CONFIG_PEFT:
            continue
        (folder / inner).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / inner)
    card = folder / CARD
    if card.is_file() and read_card_data(folder):
        text = card.read_text(encoding="utf-8", errors="surrogateescape")
        head, mark, rest = text.partition("\n---")
        head = re.sub(r"(?m)^library_name:.*$", f"library_name: {library}", head)
        card.write_text(head + mark + rest, encoding="utf-8", errors="surrogateescape")


def note_change(folder: Path, title: str, text: str, settings: Mapping[str, object]) -> None:
    """Say in the card and the manifest of `folder`, where it has them, what was done to the adapter.

    The manifest's metrics go: they are figures of the adapter that this one was made from.
    """
    card = folder / CARD
    if card.is_file():
        with card.open("a", encoding="utf-8") as file:
            file.write(f"\n## {title}\n\n{text}\n")
    if manifest := read_manifest(folder):
        changed = dataclasses.replace(manifest, settings={**manifest.settings, **settings}, metrics={})
        (folder / MANIFEST).write_text(manifest_json(changed), encoding="utf-8")
