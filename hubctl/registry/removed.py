"""Removed repositories: set aside with all they hold, to come back by one command until `gc` takes them."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from hubctl.registry import quota
from hubctl.registry.accounts import writer_to
from hubctl.registry.database import now
from hubctl.registry.faults import RepoNotFound


@dataclass(frozen=True, kw_only=True, slots=True)
class Removed:
    """A repository that was removed, as it was called."""

    kind: str
    id: str
    private: bool
    removed_at: str
    removed_by: str


def set_aside(db: sqlite3.Connection, repo: int, *, user: str) -> None:
    """Take a repository away from its owner; its name is free at once.

    One that never held anything is not kept: it would come back in place of an earlier one of its name.
    """
    held = "SELECT 1 FROM files WHERE repo = ? AND path <> '.gitattributes'"
    if db.execute(held, (repo,)).fetchone() is None:
        db.execute("DELETE FROM repos WHERE id = ?", (repo,))
        return
    db.execute(
        "INSERT INTO removed SELECT id, owner, name, private, ?, ? FROM repos WHERE id = ?",
        (now(), user, repo),
    )
    # Nobody is called '', so no right reaches it; its key as a name is like no other.
    db.execute("UPDATE repos SET owner = '', name = id, private = 1 WHERE id = ?", (repo,))


def find(db: sqlite3.Connection, *, user: str) -> list[Removed]:
    """What `user` could bring back, the latest first."""
    rows = db.execute(
        "SELECT kind, removed.owner || '/' || removed.name AS id, removed.private, removed_at, removed_by"
        " FROM removed JOIN repos ON repos.id = removed.repo"
        " WHERE removed.owner IN (SELECT owner FROM rights WHERE user = ? AND role = 'write')"
        " ORDER BY removed_at DESC, removed.repo DESC",
        (user,),
    )
    return [Removed(**{**dict(row), "private": bool(row["private"])}) for row in rows]


def restore(db: sqlite3.Connection, kind: str, owner: str, name: str, *, user: str) -> None:
    """Give a repository back to its owner: of several that had this name, the last that was removed.

    The caller has made sure that the name is free.

    Raises:
        RepoNotFound: none of that name was removed, or `gc` has taken it.
        AccessError: `user` may not write to what `owner` has.
        QuotaExceeded: the owner would keep too much.
    """
    owner = writer_to(db, owner, user)
    row = db.execute(
        "SELECT removed.* FROM removed JOIN repos ON repos.id = removed.repo"
        " WHERE kind = ? AND removed.owner = ? AND removed.name = ?"
        " ORDER BY removed_at DESC, repo DESC LIMIT 1",
        (kind, owner, name),
    ).fetchone()
    if row is None:
        raise RepoNotFound(f"no removed {kind} {owner}/{name} is kept here")
    db.execute(
        "UPDATE repos SET owner = ?, name = ?, private = ?, updated_at = ? WHERE id = ?",
        (row["owner"], row["name"], row["private"], now(), row["repo"]),
    )
    db.execute("DELETE FROM removed WHERE repo = ?", (row["repo"],))
    quota.check_room(db, owner)


def purge(db: sqlite3.Connection, *, before: str, limit: int) -> int:
    """Forget for good at most `limit` repositories that were removed before a moment; returns how many."""
    return db.execute(
        "DELETE FROM repos WHERE id IN (SELECT repo FROM removed WHERE removed_at < ? LIMIT ?)",
        (before, limit),
    ).rowcount
