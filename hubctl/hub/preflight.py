"""What a push would change, and what must not leave this disk: looked at before any byte is sent."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hubctl.errors import InputError
from hubctl.hub.records import FileInfo, keeps

Change = Literal["new", "changed", "same", "removed"]

TEXTS = frozenset({".md", ".txt", ".json", ".toml", ".yaml", ".yml", ".csv", ".svg", ""})
MAX_TEXT_BYTES = 8 << 20
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
    for name, path in files.items():
        if path.suffix.lower() not in TEXTS or path.stat().st_size > MAX_TEXT_BYTES:
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            if found := _SECRET.search(line):
                kind = list(SECRETS)[(found.lastindex or 1) - 1]
                raise InputError(
                    f"{name}, line {number} holds {kind}", hint=f"take it out of {path}, and revoke it"
                )
