"""Finding repositories: by words, owner and tags, in order, page by page."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hubctl.errors import InputError
from hubctl.registry.accounts import READABLE
from hubctl.registry.database import Database
from hubctl.registry.repo import REPO_COLUMNS, Kind, Repo, repo_of

MAX_PAGE = 500
MAX_SEARCH = 400
"""Characters of a search that count: more than any name has, fewer than SQLite takes for a pattern."""

# Nothing is counted or liked here: orders by popularity fall back to the newest change.
_SORT_COLUMNS = {
    "lastModified": "updated_at",
    "createdAt": "created_at",
    "downloads": "updated_at",
    "likes": "updated_at",
    "trendingScore": "updated_at",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Query:
    """What to find; every condition must hold."""

    kind: Kind
    user: str | None
    """Who asks: private repositories show only to those who may read them."""
    search: str = ""
    author: str = ""
    tags: Sequence[str] = ()
    pipeline_tag: str = ""
    sort: str = "lastModified"
    limit: int = MAX_PAGE
    cursor: str = ""


def find(database: Database, query: Query) -> tuple[list[Repo], str | None]:
    """One page of repositories, and the cursor of the next page if there is one.

    Raises:
        InputError: unknown order, or a cursor that is none.
    """
    column = _SORT_COLUMNS.get(query.sort)
    if column is None:
        raise InputError(f"cannot sort by {query.sort!r}; known: {', '.join(_SORT_COLUMNS)}")
    limit = min(max(query.limit, 1), MAX_PAGE)
    where, values = _conditions(query)
    if query.cursor:
        # The last row of the page before, not its number: what is created meanwhile shifts nothing.
        where.append(f"({column}, id) < (?, ?)")
        values += _read_cursor(query.cursor)
    conditions = " AND ".join(where)
    sql = f"SELECT {REPO_COLUMNS} FROM repos WHERE {conditions} ORDER BY {column} DESC, id DESC LIMIT ?"
    with database.read() as db:
        rows = db.execute(sql, (*values, limit + 1)).fetchall()
    page = rows[:limit]
    more = len(rows) > limit
    return [repo_of(row) for row in page], _cursor(page[-1][column], page[-1]["id"]) if more else None


def _conditions(query: Query) -> tuple[list[str], list[Any]]:
    where: list[str] = ["kind = ?"]
    values: list[Any] = [query.kind]
    if query.search:
        # Names are ASCII, so LIKE's blindness to case is enough, at half the cost of lower().
        where.append("owner || '/' || name LIKE ? ESCAPE '!'")
        text = re.sub("([!%_])", r"!\1", query.search[:MAX_SEARCH])
        values.append(f"%{text}%")
    if query.author:
        where.append("owner = ?")
        values.append(query.author)
    if query.pipeline_tag:
        where.append("pipeline_tag = ?")
        values.append(query.pipeline_tag)
    for tag in query.tags:
        where.append("repos.id IN (SELECT repo FROM repo_tags WHERE tag = ?)")
        values.append(tag)
    # Last, as it costs most: of a hundred thousand rows few are left to be asked.
    return [*where, READABLE], [*values, query.user]


def _cursor(value: str, key: int) -> str:
    return base64.urlsafe_b64encode(f"{value}|{key}".encode()).decode()


def _read_cursor(cursor: str) -> tuple[str, int]:
    try:
        value, _, key = base64.urlsafe_b64decode(cursor.encode()).decode().rpartition("|")
        number = int(key)
        if abs(number) >= 2**63:
            raise ValueError("SQLite has no such number")
        return value, number
    except ValueError as error:
        raise InputError(f"cursor {cursor[:80]!r} is not one of this registry") from error
