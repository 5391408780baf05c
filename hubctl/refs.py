"""Names of adapters: what was asked for, and what it resolved to."""

from __future__ import annotations

import re
from dataclasses import dataclass

from hubctl.errors import InputError

# One path segment of a repository id: the Hub's own rule (letters, digits, and -_. between them, at most 96).
_SEGMENT = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?")
_REVISION = re.compile(r"(?!/)(?!.*(?:\.\.|//|/$))[A-Za-z0-9._/+-]{1,255}")


def check_repo_id(repo_id: str) -> str:
    """Return `repo_id` if it is `owner/name`; raise `InputError` otherwise."""
    parts = repo_id.split("/")
    sound = len(parts) == 2 and not repo_id.endswith(".git")
    if not sound or not all(_SEGMENT.fullmatch(p) and ".." not in p and "--" not in p for p in parts):
        raise InputError(
            f"'{repo_id}' is not a repository id",
            hint="write it as OWNER/NAME, for example alice/line-art (letters, digits, - _ .)",
        )
    return repo_id


@dataclass(frozen=True, slots=True)
class AdapterRef:
    """What a user or request asked for: `owner/name`, optionally at a branch, tag or commit."""

    repo_id: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> AdapterRef:
        """Read `owner/name` or `owner/name@revision`; never a path or a URL.

        Raises:
            InputError: the text is anything else.
        """
        repo_id, at, revision = text.partition("@")
        check_repo_id(repo_id)
        if at and not _REVISION.fullmatch(revision):
            raise InputError(
                f"'{revision}' is not a revision", hint=f"write {repo_id}@main, @a-tag or @a-commit"
            )
        return cls(repo_id, revision or None)

    def __str__(self) -> str:
        return f"{self.repo_id}@{self.revision}" if self.revision else self.repo_id


@dataclass(frozen=True, slots=True)
class PinnedRef:
    """What a reference resolved to: the key of every cache, so a moving branch serves nothing stale."""

    repo_id: str
    revision: str
    """As asked; `main` when nothing was."""
    commit: str
    """40 hex digits."""
    sha256: str
    """Of the weights file, 64 hex digits."""

    def __str__(self) -> str:
        return f"{self.repo_id}@{self.commit[:12]}"
