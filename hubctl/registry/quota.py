"""How many bytes an owner may keep, and keeps: every file of every commit, each content once."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping

from hubctl.registry.faults import QuotaExceeded

# Each content of each repository once. The same file is in many commits: from one content to the next by the
# index takes a thousandth of the time that reading all rows does.
_CONTENTS = """
    WITH RECURSIVE step(repo, sha256) AS (
        SELECT id, (SELECT MIN(sha256) FROM files WHERE repo = id) FROM repos WHERE {which} UNION ALL
        SELECT repo, (SELECT MIN(sha256) FROM files WHERE repo = step.repo AND sha256 > step.sha256)
        FROM step WHERE sha256 IS NOT NULL
    )
    SELECT repo, sha256,
        (SELECT size FROM files WHERE repo = step.repo AND sha256 = step.sha256 LIMIT 1) AS size
    FROM step WHERE sha256 IS NOT NULL
"""


def used_bytes(db: sqlite3.Connection, owner: str) -> int:
    """Bytes that the repositories of `owner` keep."""
    each = f"SELECT DISTINCT sha256, size FROM ({_CONTENTS.format(which='owner = ?')})"
    return int(db.execute(f"SELECT COALESCE(SUM(size), 0) FROM ({each})", (owner,)).fetchone()[0])


def quota_of(db: sqlite3.Connection, owner: str) -> int | None:
    """Bytes that `owner` may keep; None is no limit."""
    row = db.execute("SELECT quota_bytes FROM users WHERE name = ?", (owner,)).fetchone()
    return row["quota_bytes"] if row else None


def check_room(db: sqlite3.Connection, owner: str, sizes: Mapping[str, int] | None = None) -> None:
    """Refuse files (sha256 to bytes) that would leave `owner` with more bytes than allowed.

    What is kept already adds nothing, so whoever has too much may still do all else. Without `sizes` what is
    there now is judged.

    Raises:
        QuotaExceeded: it would be too much.
    """
    quota = quota_of(db, owner)
    if quota is None:
        return
    there = "SELECT 1 FROM files JOIN repos ON repos.id = files.repo WHERE sha256 = ? AND owner = ? LIMIT 1"
    new = [
        size for sha256, size in (sizes or {}).items() if not db.execute(there, (sha256, owner)).fetchone()
    ]
    if sizes is not None and not new:
        return
    used = used_bytes(db, owner)
    if used + sum(new) > quota:
        raise QuotaExceeded(
            f"{owner} may keep {quota} bytes here and has {used}"
            + (f" and {sum(new)} to come" if new else ""),
            hint="delete repositories or large files, or ask who runs this registry for more",
        )


def by_repo(db: sqlite3.Connection, owner: str) -> list[sqlite3.Row]:
    """The repositories of `owner` (kind, id, private, updated_at) and the bytes each keeps, largest first."""
    return db.execute(
        "SELECT kind, owner || '/' || name AS id, private, updated_at, COALESCE(SUM(size), 0) AS bytes"
        f" FROM repos LEFT JOIN ({_CONTENTS.format(which='owner = ?1')}) AS kept ON kept.repo = repos.id"
        " WHERE owner = ?1 GROUP BY repos.id ORDER BY bytes DESC, 2",
        (owner,),
    ).fetchall()
