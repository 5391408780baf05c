"""Removing what nobody can reach any more. Safe beside a running registry.

What goes is old as well as unreachable: between an upload and its commit a file belongs to nothing yet. Files
are removed while no commit can be written, and a commit looks for its files while none can be removed.
Xorbs only spare clients from sending chunks twice; when they go, a new epoch makes clients send again.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from hubctl.registry import removed
from hubctl.registry.blobs import FileStore
from hubctl.registry.database import Database

_BATCH = 500

_UNREACHABLE = """
    (repo, oid) NOT IN (
        WITH RECURSIVE live(repo, oid) AS (
            SELECT repo, oid FROM refs UNION SELECT repo, oid FROM commits WHERE created_at >= ? UNION
            SELECT commits.repo, parent FROM live JOIN commits USING (repo, oid) WHERE parent IS NOT NULL
        ) SELECT repo, oid FROM live
    )
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Collected:
    """What was removed, or would be."""

    repositories: int
    """Removed by their owners, long enough ago."""
    commits: int
    """On no branch and no tag."""
    blobs: int
    """Files that no commit has."""
    xorbs: int
    drafts: int
    """Uploads that never ended."""
    freed_bytes: int


def collect(
    db: Database,
    blobs: FileStore,
    xorbs: FileStore,
    *,
    before: str,
    before_s: float,
    removed_before: str = "",
    dry_run: bool = False,
) -> Collected:
    """Remove what is unreachable and was last used before a moment, given as text and in Unix time.

    Repositories that their owners removed go when that was before `removed_before`.
    """
    if dry_run:
        repositories, commits, old_blobs = _rehearse(db, blobs, before, before_s, removed_before)
        gone_blobs, gone_xorbs = (
            _sizes(blobs, old_blobs),
            _sizes(xorbs, _old(xorbs, xorbs.digests(), before_s)),
        )
    else:
        repositories = _forget_removed(db, removed_before)
        commits = _prune(db, before)
        gone_blobs = _remove(db, blobs, before_s, "blob")
        gone_xorbs = _remove(db, xorbs, before_s, "xorb")
    drafts = [path for store in (blobs, xorbs) for path in store.drafts() if _is_old(path, before_s)]
    freed = sum(gone_blobs) + sum(gone_xorbs) + sum(path.stat().st_size for path in drafts)
    for path in drafts if not dry_run else ():
        path.unlink(missing_ok=True)
    return Collected(
        repositories=repositories,
        commits=commits,
        blobs=len(gone_blobs),
        xorbs=len(gone_xorbs),
        drafts=len(drafts),
        freed_bytes=freed,
    )


def _rehearse(
    db: Database, blobs: FileStore, before: str, before_s: float, removed_before: str
) -> tuple[int, int, list[str]]:
    """How many repositories and commits would go, and which files then; nothing is changed."""
    with db.write() as connection:
        connection.execute("SAVEPOINT all_of_it")
        repositories = removed.purge(connection, before=removed_before, limit=-1)
        commits = connection.execute(f"DELETE FROM commits WHERE {_UNREACHABLE}", (before,)).rowcount
        old_blobs = list(_unused_blobs(connection, _old(blobs, blobs.digests(), before_s)))
        connection.execute("ROLLBACK TO all_of_it")
    return repositories, commits, old_blobs


def _forget_removed(db: Database, before: str) -> int:
    total = 0
    while True:
        with db.write() as connection:  # one at a time: nobody can push while its rows are deleted
            gone = removed.purge(connection, before=before, limit=1)
        if gone == 0:
            return total
        total += gone


def _prune(db: Database, before: str) -> int:
    # A few at a time: nobody can push while one of these runs.
    some = f"SELECT repo, oid FROM commits WHERE {_UNREACHABLE} LIMIT {_BATCH // 5}"
    total = 0
    while True:
        with db.write() as connection:
            gone = connection.execute(
                f"DELETE FROM commits WHERE (repo, oid) IN ({some})", (before,)
            ).rowcount
        if gone == 0:
            return total
        total += gone


def _remove(db: Database, store: FileStore, before_s: float, kind: str) -> list[int]:
    sizes = []
    digests = store.digests()
    while batch := list(islice(digests, _BATCH)):
        with db.write() as connection:
            old = list(_old(store, batch, before_s))
            gone = list(_unused_blobs(connection, old)) if kind == "blob" else old
            sizes += _sizes(store, gone)
            if kind == "xorb":
                _renew_epochs(connection, gone)
            connection.executemany(
                "DELETE FROM held WHERE kind = ? AND digest = ?", ((kind, digest) for digest in gone)
            )
            for digest in gone:
                store.path(digest).unlink(missing_ok=True)
    return sizes


def _unused_blobs(db: sqlite3.Connection, digests: Iterable[str]) -> Iterator[str]:
    for digest in digests:
        if not db.execute("SELECT 1 FROM files WHERE sha256 = ? LIMIT 1", (digest,)).fetchone():
            yield digest


def _renew_epochs(db: sqlite3.Connection, xorbs: Sequence[str]) -> None:
    holders = {
        row["user"]
        for digest in xorbs
        for row in db.execute("SELECT user FROM held WHERE kind = 'xorb' AND digest = ?", (digest,))
    }
    db.executemany(
        "UPDATE users SET xet_epoch = ? WHERE name = ?", ((secrets.token_hex(4), user) for user in holders)
    )


def _old(store: FileStore, digests: Iterable[str], before_s: float) -> Iterator[str]:
    return (digest for digest in digests if _is_old(store.path(digest), before_s))


def _is_old(path: Path, before_s: float) -> bool:
    try:
        return path.stat().st_mtime < before_s
    except FileNotFoundError:  # somebody else was quicker
        return False


def _sizes(store: FileStore, digests: Iterable[str]) -> list[int]:
    return [store.size(digest) or 0 for digest in digests]
