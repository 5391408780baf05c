"""`hub.lock`: the adapters that a project uses, each at one commit with the sha256 of every file.

A branch moves, a deleted owner's name can be registered by somebody else; a commit and hashes cannot change
meaning. The file is TOML, sorted, so that two versions of it compare line by line.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from hubctl.adapter.card import first_base_model, read_card_data
from hubctl.adapter.package import read_manifest
from hubctl.base_models import embedded_path
from hubctl.errors import ConflictError, InputError, IntegrityError, NotFoundError
from hubctl.hub.pull import Pulled, pull_base
from hubctl.hub.records import AdapterInfo
from hubctl.refs import AdapterRef, PinnedRef
from hubctl.settings import load_toml, toml_string

if TYPE_CHECKING:
    from hubctl.hub.client import Hub

LOCK = "hub.lock"
VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Locked:
    """One adapter as it was when it was locked."""

    revision: str
    """The branch or tag that was asked for; upgrading asks for it again."""
    commit: str
    weights: str
    """Name of the weights file among `files`."""
    rank: tuple[int, ...]
    """The ranks of its layers, each once."""
    base: str | None = None
    base_commit: str | None = None
    """None for a base that is a folder or comes with hubctl."""
    files: dict[str, str] = field(default_factory=dict)
    """sha256 of the content by path."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LockFile:
    """What `hub.lock` holds: adapters by repository id."""

    version: int = VERSION
    adapters: dict[str, Locked] = field(default_factory=dict)


def read_lock(path: Path) -> LockFile:
    """Read and check a lock file.

    Raises:
        NotFoundError: there is none.
        InputError: it is not one that this hubctl understands.
    """
    if not path.is_file():
        raise NotFoundError(f"no lock file {path}", hint="hubctl lock OWNER/NAME makes one")
    lock = load_toml(path, LockFile)
    if lock.version != VERSION:
        raise InputError(f"{path} is of version {lock.version}, not {VERSION}", hint="update hubctl")
    for repo_id, entry in lock.adapters.items():
        AdapterRef.parse(f"{repo_id}@{entry.commit}")
        if entry.weights not in entry.files:
            raise InputError(
                f"{path}: {repo_id} has no hash of {entry.weights}", hint=f"hubctl lock {repo_id}"
            )
    return lock


def lock_text(lock: LockFile) -> str:
    """The text of `hub.lock`."""
    lines = ["# Written by `hubctl lock`; `hubctl lock --upgrade` moves it on.", f"version = {lock.version}"]
    for repo_id, entry in sorted(lock.adapters.items()):
        table = f"adapters.{toml_string(repo_id)}"
        lines += [
            "",
            f"[{table}]",
            f"revision = {toml_string(entry.revision)}",
            f"commit = {toml_string(entry.commit)}",
        ]
        lines += [f"weights = {toml_string(entry.weights)}", f"rank = {list(entry.rank)}"]
        lines += [f"base = {toml_string(entry.base)}"] if entry.base else []
        lines += [f"base_commit = {toml_string(entry.base_commit)}"] if entry.base_commit else []
        lines += ["", f"[{table}.files]"]
        lines += [
            f"{toml_string(name)} = {toml_string(sha256)}" for name, sha256 in sorted(entry.files.items())
        ]
    return "\n".join(lines) + "\n"


def write_lock(path: Path, lock: LockFile) -> None:
    """Replace the lock file in one step."""
    made = path.with_name(f".{path.name}.new")
    made.write_text(lock_text(lock), encoding="utf-8")
    made.replace(path)


def lock_pulled(hub: Hub, pulled: Pulled) -> Locked:
    """The entry of an adapter in the cache; `hub` is asked for its base's commit."""
    base = first_base_model(read_card_data(pulled.path))
    manifest = read_manifest(pulled.path)
    known = manifest.base.commit if manifest and manifest.base.id == base else None
    return Locked(
        revision=pulled.pinned.revision,
        commit=pulled.pinned.commit,
        weights=pulled.layout.weights_file.relative_to(pulled.path).as_posix(),
        rank=tuple(sorted({module.rank for module in pulled.layout.modules})),
        base=base,
        base_commit=known or _base_commit(hub, base),
        files=file_hashes(pulled.path),
    )


def locked_ref(lock: LockFile, ref: AdapterRef, where: Path) -> PinnedRef:
    """What `ref` is by the lock file, which nobody need be asked for.

    Raises:
        NotFoundError: it is not locked.
        ConflictError: another revision was asked for than the locked one.
    """
    entry = lock.adapters.get(ref.repo_id)
    if entry is None:
        raise NotFoundError(f"{ref.repo_id} is not in {where}", hint=f"hubctl lock {ref}")
    if ref.revision not in (None, entry.revision) and not entry.commit.startswith(str(ref.revision)):
        raise ConflictError(
            f"{where} has {ref.repo_id} at {entry.revision} ({entry.commit[:12]}), not {ref.revision}",
            hint=f"hubctl lock {ref}",
        )
    return PinnedRef(ref.repo_id, entry.revision, entry.commit, entry.files[entry.weights])


def lookup_locked(
    lookup: Callable[[AdapterRef], AdapterInfo], lock: LockFile, ref: AdapterRef
) -> AdapterInfo:
    """What `lookup` says of `ref` at its locked commit.

    Raises:
        NotFoundError: it is not locked.
        ConflictError: another revision was asked for than the locked one.
        IntegrityError: the registry has other weights under that commit.
    """
    pinned = locked_ref(lock, ref, Path(LOCK))
    info = lookup(AdapterRef(pinned.repo_id, pinned.commit))
    if (info.pinned.commit, info.pinned.sha256) != (pinned.commit, pinned.sha256):
        raise IntegrityError(
            f"{pinned} is not what {LOCK} says",
            hint=f"hubctl lock {pinned.repo_id} --upgrade shows the difference",
        )
    return dataclasses.replace(info, revision=pinned.revision, pinned=pinned)


def locked_base(lock: LockFile, repo_id: str) -> str | None:
    """The commit at which the locked adapters were locked for the base `repo_id`; None when nothing says one.

    Raises:
        ConflictError: adapters of the lock file name different commits.
    """
    entries = {name: entry for name, entry in lock.adapters.items() if entry.base == repo_id}
    commits = {entry.base_commit: name for name, entry in sorted(entries.items()) if entry.base_commit}
    if len(commits) > 1:
        names = ", ".join(sorted(commits.values()))
        raise ConflictError(
            f"{LOCK} has {repo_id} at {len(commits)} commits, for {names}", hint="hubctl lock --upgrade"
        )
    return next(iter(commits), None)


def fetch_base(hub: Hub, lock: LockFile | None, ref: AdapterRef) -> tuple[Path, str]:
    """The base `ref` in the cache, and its commit; at the locked one where the lock file names it.

    Raises:
        ConflictError: another commit was asked for.
    """
    commit = locked_base(lock, ref.repo_id) if lock else None
    path, found = pull_base(hub, AdapterRef(ref.repo_id, ref.revision or commit))
    if commit is not None and commit != found:
        raise ConflictError(
            f"{ref} is {found[:12]}, and {LOCK} has {commit[:12]}",
            hint=f"hubctl serve --base {ref.repo_id} --locked",
        )
    return path, found


def check_files(folder: Path, entry: Locked, repo_id: str) -> None:
    """Raise `IntegrityError` unless `folder` holds exactly the files that were locked."""
    if wrong := changed_files(file_hashes(folder), entry.files):
        raise IntegrityError(
            f"{repo_id}@{entry.commit[:12]} differs from the lock file: {', '.join(wrong[:5])}",
            hint=f"rm -r {folder}, then pull again; if it stays so, hubctl lock {repo_id}",
        )


def changed_files(now: Mapping[str, str], locked: Mapping[str, str]) -> list[str]:
    """Paths that were added, removed or changed."""
    return sorted(name for name in {*now, *locked} if now.get(name) != locked.get(name))


def file_hashes(folder: Path) -> dict[str, str]:
    """sha256 of every file under `folder`, by path."""
    hashes = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                hashes[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes


def _base_commit(hub: Hub, base: str | None) -> str | None:
    if base is None or embedded_path(base) is not None:
        return None
    try:
        return hub.repo_info(AdapterRef.parse(base)).commit
    except (InputError, NotFoundError):
        return None  # a folder, or nothing that this registry has
