"""What a registry says about repositories and files, as plain data."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from hubctl.adapter.card import first_base_model
from hubctl.adapter.findings import Finding
from hubctl.adapter.layout import WEIGHTS_DIFFUSERS, WEIGHTS_PEFT
from hubctl.adapter.new_tokens import is_tokens_file
from hubctl.errors import AdapterError, IntegrityError
from hubctl.refs import PinnedRef

READ_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class FileInfo:
    """What a registry promises about one file."""

    size_bytes: int
    sha256: str | None
    """Of the content, for files kept out of git (LFS)."""
    git_sha1: str | None
    """Of the git blob, for the others."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RepoInfo:
    """A repository at one commit."""

    repo_id: str
    revision: str
    """As asked; `main` when nothing was."""
    commit: str
    files: dict[str, FileInfo]
    card: dict[str, Any]
    """The metadata of README.md."""
    task: str | None
    tags: tuple[str, ...]
    private: bool
    updated: datetime | None

    @property
    def base_model(self) -> str | None:
        """The base that the card names (the first, when it names several)."""
        return first_base_model(self.card)


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterInfo(RepoInfo):
    """A repository that holds an adapter, pinned to a commit and to the sha256 of its weights."""

    weights_file: str
    pinned: PinnedRef


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterSummary:
    """One line of a listing."""

    repo_id: str
    base_model: str | None
    task: str | None
    trigger: str | None
    """What a prompt must say for the adapter to show, where the card tells (`instance_prompt`)."""
    updated: datetime | None
    size_bytes: int | None
    commit: str | None
    private: bool
    tags: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Pushed:
    """What a push made of a repository."""

    repo_id: str
    commit: str
    url: str
    unchanged: bool
    """The registry had exactly these files already; no commit was made."""
    warnings: Sequence[Finding] = ()
    """What to think of, now that others see it."""


def pick_weights(info: RepoInfo) -> str:
    """The weights file of the adapter in `info`, by the names that diffusers and peft look for.

    Raises:
        AdapterError: there is none in safetensors, or several under other names.
    """
    for name in (WEIGHTS_DIFFUSERS, WEIGHTS_PEFT):
        if name in info.files:
            return name
    if {"model_index.json", "config.json"} & set(info.files):
        raise AdapterError(
            f"{info.repo_id} is a base model, not an adapter", hint=f"hubctl serve --base {info.repo_id}"
        )
    others = [
        name
        for name in info.files
        if name.endswith(".safetensors") and "/" not in name and not is_tokens_file(name)
    ]
    if len(others) == 1:
        return others[0]
    raise AdapterError(
        f"{info.repo_id} holds {'several' if others else 'no'} safetensors weights",
        hint=f"hubctl reads {WEIGHTS_DIFFUSERS} or {WEIGHTS_PEFT}; pickles are never taken",
    )


def keeps(path: Path, promise: FileInfo) -> bool:
    """Whether the file at `path` is what `promise` says."""
    if path.stat().st_size != promise.size_bytes:
        return False
    digest = Digest(promise, path.name)
    with path.open("rb") as file:
        while chunk := file.read(READ_BYTES):
            digest.update(chunk)
    try:
        digest.check(path.name)
    except IntegrityError:
        return False
    return True


class Digest:
    """The hash that a registry states for a file, computed along the way.

    Raises:
        IntegrityError: it states none.
    """

    def __init__(self, promised: FileInfo, path: str) -> None:
        self._promised, self._path, self._size = promised, path, 0
        if promised.sha256:
            self._hash, self._wanted = hashlib.sha256(), promised.sha256
        elif promised.git_sha1:
            # git's blob id is the sha1 of this prefix and the content.
            self._hash = hashlib.sha1(f"blob {promised.size_bytes}\0".encode(), usedforsecurity=False)
            self._wanted = promised.git_sha1
        else:
            raise IntegrityError(f"the registry states no hash for {path}")

    def update(self, chunk: bytes) -> None:
        """Take the next bytes."""
        self._size += len(chunk)
        self._hash.update(chunk)

    def check(self, where: str) -> None:
        """Raise `IntegrityError` unless exactly the promised bytes came; `where` names the repository."""
        if self._size != self._promised.size_bytes:
            raise IntegrityError(
                f"{self._path} of {where} arrived with {self._size:,} bytes,"
                f" not {self._promised.size_bytes:,}",
                hint="pull again; if it stays so, tell the registry's owner",
            )
        if self._hash.hexdigest() != self._wanted:
            raise IntegrityError(
                f"{self._path} of {where} is not what the registry promised: its hash is"
                f" {self._hash.hexdigest()[:12]}..., not {self._wanted[:12]}...",
                hint="pull again; if it stays so, tell the registry's owner",
            )
