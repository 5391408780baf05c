"""A repository of another Hub, copied under the commit id that it has there, so that locks hold here too."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Protocol

from hubctl.errors import ConflictError, InputError
from hubctl.paths import check_no_collisions, check_path
from hubctl.refs import AdapterRef
from hubctl.registry import accounts, commits, git
from hubctl.registry.blobs import FileStore
from hubctl.registry.commits import File
from hubctl.registry.database import Database, now
from hubctl.registry.names import check_ref_name, check_repo_name

_COMMIT = re.compile(r"[0-9a-f]{40}")


class FileFacts(Protocol):
    """What the other Hub promises about a file."""

    @property
    def size_bytes(self) -> int: ...  # noqa: D102
    @property
    def sha256(self) -> str | None: ...  # noqa: D102
    @property
    def git_sha1(self) -> str | None: ...  # noqa: D102


class Source(Protocol):
    """The other Hub; `hubctl.hub.client.Hub` is one."""

    @property
    def endpoint(self) -> str: ...  # noqa: D102

    def repo_info(self, ref: AdapterRef) -> Any:
        """With `commit` (40 hex digits) and `files` (path to FileFacts)."""

    def download(self, info: Any, path: str, target: Path, *, on_bytes: Callable[[int], None]) -> None:
        """Write a file to `target`, after checking it against what was promised."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mirrored:
    """What a mirror has now."""

    repo_id: str
    commit: str
    files: int
    downloaded_bytes: int
    excluded: tuple[str, ...]


def mirror(
    db: Database,
    blobs: FileStore,
    source: Source,
    ref: AdapterRef,
    *,
    repo_id: str,
    exclude: Sequence[str] = (),
    private: bool = False,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Mirrored:
    """Copy the model `ref` of `source` to `repo_id` of the registry; again, only what is new is downloaded.

    The branch `main` follows the other's; any other revision becomes a tag (`commit-...` for a commit). Files
    that match a pattern of `exclude` are left out. `progress` is told bytes done and bytes in all.

    Raises:
        ConflictError: `repo_id` exists and is no mirror.
        InputError: a file has a name that is not allowed here.
        HubctlError: as the source's.
    """
    owner, _, name = repo_id.partition("/")
    check_repo_name(name)
    info = source.repo_info(ref)
    if not _COMMIT.fullmatch(info.commit):
        raise InputError(f"{source.endpoint} names a commit that is none: {info.commit[:60]!r}")
    wanted, excluded = choose(info.files, exclude)
    with db.read() as connection:
        _find(connection, owner, name)
        known = {path: _present(connection, blobs, facts) for path, facts in wanted.items()}
    missing = {path: facts for path, facts in wanted.items() if known[path] is None}
    total, done = sum(facts.size_bytes for facts in missing.values()), 0

    def count(more_bytes: int) -> None:
        nonlocal done
        done += more_bytes
        progress(done, total)

    tree = {}
    for path, facts in wanted.items():
        sha256 = known[path] or _fetch(source, info, path, blobs, count)
        blobs.touch(sha256)
        tree[path] = _file(path, facts, sha256)
    with db.write() as connection:
        _record(
            connection, blobs, owner, name, ref, info.commit, tree, source=source.endpoint, private=private
        )
    return Mirrored(
        repo_id=repo_id, commit=info.commit, files=len(tree), downloaded_bytes=total, excluded=excluded
    )


def choose(
    files: Mapping[str, FileFacts], exclude: Sequence[str]
) -> tuple[dict[str, FileFacts], tuple[str, ...]]:
    """The files to copy, all of them with names that are allowed here, and the paths left out."""
    excluded = tuple(path for path in files if any(fnmatchcase(path, pattern) for pattern in exclude))
    wanted = {path: facts for path, facts in files.items() if path not in excluded}
    for path in wanted:
        check_path(path)
    check_no_collisions(wanted)
    return wanted, excluded


def _present(db: sqlite3.Connection, blobs: FileStore, facts: FileFacts) -> str | None:
    """The sha256 of a file that the registry has already."""
    sha256 = facts.sha256
    if sha256 is None:
        row = db.execute(
            "SELECT sha256 FROM files WHERE git_id = ? AND NOT lfs", (facts.git_sha1,)
        ).fetchone()
        sha256 = row["sha256"] if row else None
    return sha256 if sha256 and blobs.size(sha256) == facts.size_bytes else None


def _fetch(source: Source, info: Any, path: str, blobs: FileStore, count: Callable[[int], None]) -> str:
    with blobs.draft() as draft:
        source.download(info, path, draft.path, on_bytes=count)
        return draft.publish(draft.read_back())


def _file(path: str, facts: FileFacts, sha256: str) -> File:
    if facts.sha256 is not None:
        return commits.put_large(path, sha256, facts.size_bytes)
    return File(path=path, sha256=sha256, size_bytes=facts.size_bytes, git_id=facts.git_sha1 or "", lfs=False)


def _record(
    db: sqlite3.Connection,
    blobs: FileStore,
    owner: str,
    name: str,
    ref: AdapterRef,
    oid: str,
    tree: dict[str, File],
    *,
    source: str,
    private: bool,
) -> None:
    for file in tree.values():  # `gc` cannot take them from here on
        if blobs.size(file.sha256) != file.size_bytes:
            raise ConflictError(f"{file.path!r} was removed meanwhile", hint="mirror again")
    repo, moment = _find(db, owner, name), now()
    if repo is None:
        owner = accounts.owner_called(db, owner)
        columns = "kind, owner, name, private, created_at, updated_at"
        repo = db.execute(
            f"INSERT INTO repos ({columns}) VALUES ('model', ?, ?, ?, ?, ?)",
            (owner, name, private, moment, moment),
        ).lastrowid
        assert repo is not None  # an INSERT always has one
    tree_id = git.tree_ids({path: file.git_id for path, file in tree.items()})[""]
    title = f"Mirror of {ref.repo_id} on {source}"
    db.execute("DELETE FROM files WHERE repo = ? AND oid = ?", (repo, oid))
    db.execute(
        "INSERT INTO commits (repo, oid, tree, author, title, description, created_at, source)"
        " VALUES (?, ?, ?, ?, ?, '', ?, ?) ON CONFLICT DO UPDATE SET tree = excluded.tree",
        (repo, oid, tree_id, owner, title, moment, source),
    )
    commits.write_files(db, repo, oid, tree)
    has_main = db.execute(
        "SELECT 1 FROM refs WHERE repo = ? AND kind = 'branch' AND name = 'main'", (repo,)
    ).fetchone()
    is_main = ref.revision in (None, "main", "refs/heads/main", "HEAD")
    refs = [("branch", "main")] if is_main or not has_main else []  # a repository without main has no card
    if not is_main:
        refs.append(("tag", _tag_name(ref.revision or "", oid)))
    for kind, ref_name in refs:
        db.execute(
            "INSERT INTO refs VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET oid = excluded.oid",
            (repo, kind, ref_name, oid),
        )
    if ("branch", "main") in refs:
        _index(db, blobs, repo, tree)
    db.execute("UPDATE repos SET updated_at = ? WHERE id = ?", (moment, repo))


def _find(db: sqlite3.Connection, owner: str, name: str) -> int | None:
    """The repository's key, if it exists already as a mirror."""
    row = db.execute(
        "SELECT repos.id, source FROM repos LEFT JOIN refs ON refs.repo = repos.id AND refs.name = 'main'"
        " LEFT JOIN commits ON commits.repo = repos.id AND commits.oid = refs.oid"
        " WHERE repos.kind = 'model' AND owner = ? AND repos.name = ?",
        (owner, name),
    ).fetchone()
    if row is not None and not row["source"]:
        raise ConflictError(
            f"{owner}/{name} exists here and is no mirror",
            hint="give the mirror another name: --as OWNER/NAME",
        )
    return row["id"] if row else None


def _tag_name(revision: str, oid: str) -> str:
    name = revision.removeprefix("refs/heads/").removeprefix("refs/tags/")
    return f"commit-{oid[:12]}" if re.fullmatch(r"[0-9a-f]{7,40}", name) else check_ref_name(name)


def _index(db: sqlite3.Connection, blobs: FileStore, repo: int, tree: dict[str, File]) -> None:
    try:
        commits.index(db, blobs, repo, tree)
    except InputError:
        # Our own users may not push such a card; somebody else's must not keep their files out.
        commits.index(db, blobs, repo, {path: file for path, file in tree.items() if path != commits.README})
