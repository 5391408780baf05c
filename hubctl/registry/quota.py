"""How many bytes an owner may keep, and keeps: every file of every commit, each content once."""

from __future__ import annotations

import sqlite3

from hubctl.registry.faults import QuotaExceeded


def used_bytes(db: sqlite3.Connection, owner: str) -> int:
    """Bytes that the repositories of `owner` keep."""
    contents = "SELECT DISTINCT sha256, size FROM files JOIN repos ON repos.id = files.repo WHERE owner = ?"
    return int(db.execute(f"SELECT COALESCE(SUM(size), 0) FROM ({contents})", (owner,)).fetchone()[0])


def quota_of(db: sqlite3.Connection, owner: str) -> int | None:
    """Bytes that `owner` may keep; None is no limit."""
    row = db.execute("SELECT quota_bytes FROM users WHERE name = ?", (owner,)).fetchone()
    return row["quota_bytes"] if row else None


def check_room(db: sqlite3.Connection, owner: str, more_bytes: int = 0, *, unless_above: int = -1) -> None:
    """Refuse what would leave `owner` with more bytes than allowed.

    Raises:
        QuotaExceeded: it keeps too much with `more_bytes` on top, and more than `unless_above`: whoever has
            too much already may still do what adds nothing.
    """
    quota = quota_of(db, owner)
    if quota is None:
        return
    used = used_bytes(db, owner)
    if used + more_bytes > max(quota, unless_above):
        more = f" and {more_bytes} to come" if more_bytes else ""
        raise QuotaExceeded(
            f"{owner} may keep {quota} bytes here and has {used}{more}",
            hint="delete repositories or large files, or ask who runs this registry for more",
        )


def by_repo(db: sqlite3.Connection, owner: str) -> list[sqlite3.Row]:
    """The repositories of `owner` (kind, id, private, updated_at) and the bytes each keeps, largest first."""
    size = "(SELECT SUM(size) FROM (SELECT DISTINCT sha256, size FROM files WHERE repo = repos.id))"
    return db.execute(
        "SELECT kind, owner || '/' || name AS id, private, updated_at,"
        f" COALESCE({size}, 0) AS bytes FROM repos WHERE owner = ? ORDER BY bytes DESC, id",
        (owner,),
    ).fetchall()
