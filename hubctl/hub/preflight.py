"""What a push would change, and what must not leave this disk: looked at before any byte is sent."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hubctl.adapter.findings import Finding
from hubctl.adapter.licence import licence_conflict, stated_licence
from hubctl.adapter.metadata import local_path, private_fields
from hubctl.errors import InputError
from hubctl.hub.records import FileInfo, keeps

CODES = {
    "local-paths": "a text, or the weights' metadata, names folders of this machine",
    "no-licence": "the card states no licence: nobody else knows what they may do",
    "licence": "the card's licence does not go with the base's",
}
"""Codes of what a push warns of, and what each means."""

Change = Literal["new", "changed", "same", "removed"]

TEXTS = frozenset({".md", ".txt", ".json", ".toml", ".yaml", ".yml", ".csv", ".svg", ""})
MAX_TEXT_BYTES = 8 << 20
MAX_README_BYTES = 1 << 20
"""What hubctl's registry takes."""
SECRETS = {
    "a token of Hugging Face": r"\bhf_[A-Za-z0-9]{30,}",
    "a token of a hubctl registry": r"\b(?:hf_)?hubctl_[A-Za-z0-9_-]{43}",
    "a key of AWS": r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    "a token of GitHub": r"\bgh[pousr]_[A-Za-z0-9]{36}",
    "a private key": r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----",
}
"""What cannot be mistaken for anything else: a false alarm would keep an adapter from its users."""
_SECRET = re.compile("|".join(f"({pattern})" for pattern in SECRETS.values()))


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a push would do."""

    repo_id: str
    parent: str | None
    """The commit that it would follow; None when there is none yet."""
    changes: Mapping[str, Change]
    sizes: Mapping[str, int]
    """Bytes of the files that are here."""
    warnings: Sequence[Finding] = ()
    """What to think of before others see it."""

    @property
    def unchanged(self) -> bool:
        """The registry has exactly these files already."""
        return self.parent is not None and set(self.changes.values()) <= {"same"}


def changes(here: Mapping[str, Path], there: Mapping[str, FileInfo]) -> dict[str, Change]:
    """How the files of a folder differ from those of a commit, by size and hash."""
    found: dict[str, Change] = {name: "removed" for name in there if name not in here}
    found.pop(".gitattributes", None)  # the registry's own
    for name, path in here.items():
        promise = there.get(name)
        found[name] = "new" if promise is None else "same" if keeps(path, promise) else "changed"
    return dict(sorted(found.items()))


def refuse_secrets(files: Mapping[str, Path]) -> None:
    """Raise `InputError` when a text among `files` holds a secret; the message says where, not what."""
    for name, number, line in _lines(files):
        if found := _SECRET.search(line):
            kind = list(SECRETS)[(found.lastindex or 1) - 1]
            raise InputError(
                f"{name}, line {number} holds {kind}", hint=f"take it out of {files[name]}, and revoke it"
            )


def refuse_unreadable_card(files: Mapping[str, Path]) -> None:
    """Raise `InputError` when README.md is no text, or longer than registries take: they say so too late."""
    card = files.get("README.md")
    if card is None:
        return
    if (size := card.stat().st_size) > MAX_README_BYTES:
        raise InputError(
            f"{card} has {size:,} bytes (limit {MAX_README_BYTES:,})",
            hint="move what is long to another file",
        )
    try:
        card.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{card} is not UTF-8 text: {error}", hint="save it as UTF-8") from error


def find_local_paths(files: Mapping[str, Path], metadata: Mapping[str, str]) -> Iterator[Finding]:
    """One finding for each text, and one for the weights' metadata, that names folders of this machine."""
    told = set()
    for name, number, line in _lines(files):
        if name not in told and (path := local_path(line)):
            told.add(name)
            yield Finding(
                code="local-paths", message=f"{name}, line {number} names {path[:80]} of this machine"
            )
    if fields := private_fields(metadata):
        yield Finding(
            code="local-paths",
            message=f"the weights' metadata names folders of this machine: {', '.join(fields)[:200]}",
        )


def find_licence_faults(card: Mapping[str, Any], base_card: Mapping[str, Any]) -> Iterator[Finding]:
    """What is wrong with the licence that an adapter's card states, beside its base's."""
    own, base = stated_licence(card), stated_licence(base_card)
    if own is None:
        like = f", for example the base's: `license: {base.id}`" if base else ""
        yield Finding(code="no-licence", message=f"the card states no licence{like}")
    elif base and (conflict := licence_conflict(own, base)):
        yield Finding(code="licence", message=conflict)


def _lines(files: Mapping[str, Path]) -> Iterator[tuple[str, int, str]]:
    """File, number and text of every line of the texts among `files`."""
    for name, path in files.items():
        if path.suffix.lower() in TEXTS and path.stat().st_size <= MAX_TEXT_BYTES:
            text = path.read_text(encoding="utf-8", errors="replace")
            yield from ((name, number, line) for number, line in enumerate(text.splitlines(), 1))
