"""Names of adapters: what was asked for, and what it resolved to."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from hubctl.errors import InputError

# One path segment of a repository id: the Hub's own rule (letters, digits, and -_. between them, at most 96).
_SEGMENT = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?")
_MARKS = ("resolve", "blob", "raw", "tree")  # what follows a repository's id in an address
_REVISION = re.compile(r"(?!/)(?!.*(?:\.\.|//|/$))[A-Za-z0-9._/+-]{1,255}")


def check_repo_id(repo_id: str) -> str:
    """Return `repo_id` if it is `owner/name`; raise `InputError` otherwise."""
    parts = repo_id.split("/")
    sound = len(parts) == 2 and not repo_id.endswith(".git")
    if not sound or not all(_SEGMENT.fullmatch(p) and ".." not in p and "--" not in p for p in parts):
        raise InputError(
            f"'{repo_id}' is not a repository id",
            hint="write it as OWNER/NAME, for example alice/line-art: letters, digits, - _ . "
            "(at most 96 in each, no -- or .., no .git at the end)",
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
class WebRef:
    """A repository, or one file of it, as its address in a browser says it."""

    endpoint: str
    ref: AdapterRef
    file: str | None
    """Path of the file in the repository."""

    @classmethod
    def parse(cls, url: str) -> WebRef:
        """Read `https://HOST/OWNER/NAME`, or with `/resolve/REVISION/FILE` (or `/blob/`, `/raw/`) behind it.

        Raises:
            InputError: the address is of anything else.
        """
        parts = urlsplit(url)
        words = [unquote(word) for word in parts.path.split("/") if word]
        marks = [at for at, word in enumerate(words) if word in _MARKS and at >= 2]
        at = marks[0] if marks else len(words)
        owner, revision, file = words[: at - 2], words[at + 1 : at + 2], words[at + 2 :]
        wrong = "datasets" in owner or "spaces" in owner or len(words) < 2
        if wrong or (marks and not revision) or (marks and words[at] != "tree" and not file):
            raise InputError(
                f"'{url}' is no address of an adapter",
                hint="https://HOST/OWNER/NAME/resolve/main/FILE.safetensors",
            )
        ref = AdapterRef.parse("@".join(["/".join(words[at - 2 : at]), *revision]))
        endpoint = "/".join([f"{parts.scheme}://{parts.netloc}", *owner])
        return cls(endpoint, ref, "/".join(file) if marks and words[at] != "tree" else None)


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

    def __hash__(self) -> int:
        # A request asks caches for it some twenty times: one string, whose hash Python keeps, will do.
        return hash(self.sha256)

    def __str__(self) -> str:
        return f"{self.repo_id}@{self.commit[:12]}"
