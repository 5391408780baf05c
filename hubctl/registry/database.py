"""SQLite under a registry: the schema, and short transactions on pooled connections."""

from __future__ import annotations

import queue
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from hubctl.errors import InputError

SCHEMA_VERSION = 3

_SINCE_2 = """
CREATE TABLE members (
    org TEXT NOT NULL REFERENCES users, user TEXT NOT NULL REFERENCES users,
    role TEXT NOT NULL CHECK (role IN ('read', 'write')),
    PRIMARY KEY (org, user)
) WITHOUT ROWID;
-- What each user may do with the repositories of each owner.
CREATE VIEW rights AS
    SELECT name AS user, name AS owner, 'write' AS role FROM users WHERE NOT is_org
    UNION ALL SELECT user, org, role FROM members;

-- What an owner keeps, each content once, is read from this alone.
CREATE INDEX files_by_content ON files (repo, sha256, size);
"""

_SINCE_3 = """
-- A listing reads as much of an index as it shows; a search reads one from end to end, but no cards.
CREATE INDEX repos_by_update ON repos (kind, updated_at, id, private, owner, name, pipeline_tag);
CREATE INDEX repos_by_creation ON repos (kind, created_at, id, private, owner, name);
CREATE INDEX repos_by_owner ON repos (kind, owner, updated_at, id, private, name);
CREATE INDEX tagged ON repo_tags (tag, repo);

-- A removed repository belongs to nobody: nobody may read it, its name is free, no quota counts it. What it
-- was called stands here until it comes back or gc takes it.
CREATE TABLE removed (
    repo INTEGER PRIMARY KEY REFERENCES repos ON DELETE CASCADE,
    owner TEXT NOT NULL COLLATE NOCASE, name TEXT NOT NULL COLLATE NOCASE, private INTEGER NOT NULL,
    removed_at TEXT NOT NULL, removed_by TEXT NOT NULL
);
CREATE VIEW called AS
    SELECT id AS repo, owner || '/' || name AS name FROM repos WHERE owner <> ''
    UNION ALL SELECT repo, owner || '/' || name || ' (removed)' FROM removed;
"""

_SCHEMA = (
    """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;

-- Organisations are users without tokens: both own repositories, and no two share a name.
CREATE TABLE users (
    name TEXT PRIMARY KEY COLLATE NOCASE, created_at TEXT NOT NULL, xet_epoch TEXT NOT NULL,
    is_org INTEGER NOT NULL DEFAULT 0, quota_bytes INTEGER
) WITHOUT ROWID;

-- A token is stored as its sha256: whoever reads the database cannot log in with it.
CREATE TABLE tokens (
    digest TEXT PRIMARY KEY, user TEXT NOT NULL REFERENCES users, created_at TEXT NOT NULL,
    scope TEXT NOT NULL DEFAULT 'write', label TEXT NOT NULL DEFAULT 'token', expires_at TEXT
) WITHOUT ROWID;

-- pipeline_tag, library_name, card and repo_tags are read from the README of main at each commit.
CREATE TABLE repos (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL, owner TEXT NOT NULL COLLATE NOCASE, name TEXT NOT NULL COLLATE NOCASE,
    private INTEGER NOT NULL, created_at TEXT NOT NULL, updated_at TEXT NOT NULL,
    pipeline_tag TEXT, library_name TEXT, card TEXT NOT NULL DEFAULT '{}',
    UNIQUE (kind, owner, name)
);
CREATE TABLE repo_tags (
    repo INTEGER NOT NULL REFERENCES repos ON DELETE CASCADE, tag TEXT NOT NULL, position INTEGER NOT NULL,
    PRIMARY KEY (repo, tag)
) WITHOUT ROWID;

-- source is the Hub that a mirrored commit, with the id that it has there, comes from.
CREATE TABLE commits (
    repo INTEGER NOT NULL REFERENCES repos ON DELETE CASCADE, oid TEXT NOT NULL, parent TEXT,
    tree TEXT NOT NULL, author TEXT NOT NULL, title TEXT NOT NULL, description TEXT NOT NULL,
    created_at TEXT NOT NULL, source TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (repo, oid)
) WITHOUT ROWID;
CREATE TABLE refs (
    repo INTEGER NOT NULL, kind TEXT NOT NULL CHECK (kind IN ('branch', 'tag')), name TEXT NOT NULL,
    oid TEXT NOT NULL,
    PRIMARY KEY (repo, kind, name), FOREIGN KEY (repo, oid) REFERENCES commits ON DELETE CASCADE
) WITHOUT ROWID;

-- The whole tree of each commit: one look-up per question, at some hundred bytes per file and commit.
CREATE TABLE files (
    repo INTEGER NOT NULL, oid TEXT NOT NULL, path TEXT NOT NULL,
    sha256 TEXT NOT NULL, size INTEGER NOT NULL, git_id TEXT NOT NULL, lfs INTEGER NOT NULL,
    changed_in TEXT NOT NULL,
    PRIMARY KEY (repo, oid, path), FOREIGN KEY (repo, oid) REFERENCES commits ON DELETE CASCADE
) WITHOUT ROWID;
CREATE INDEX files_by_sha256 ON files (sha256);

-- Who has sent which bytes: naming a hash is no proof of having the file, so it opens nothing by itself.
CREATE TABLE held (
    user TEXT NOT NULL REFERENCES users, kind TEXT NOT NULL CHECK (kind IN ('blob', 'xorb')),
    digest TEXT NOT NULL,
    PRIMARY KEY (user, kind, digest)
) WITHOUT ROWID;
"""
    + _SINCE_2
    + _SINCE_3
)

# From each earlier version to the next one.
_MIGRATIONS = {
    1: """
ALTER TABLE users ADD COLUMN is_org INTEGER NOT NULL DEFAULT 0;
ALTER TABLE users ADD COLUMN quota_bytes INTEGER;
ALTER TABLE tokens ADD COLUMN scope TEXT NOT NULL DEFAULT 'write';
ALTER TABLE tokens ADD COLUMN label TEXT NOT NULL DEFAULT 'token';
ALTER TABLE tokens ADD COLUMN expires_at TEXT;
ALTER TABLE commits ADD COLUMN source TEXT NOT NULL DEFAULT '';
"""
    + _SINCE_2,
    2: _SINCE_3,
}


def now() -> str:
    """The time as the Hub writes it: `2026-01-31T12:00:00.000Z`. Such texts sort by time."""
    return stamp(datetime.now(UTC))


def stamp(moment: datetime) -> str:
    """A moment (with its time zone) as `now` writes it."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


class Database:
    """One SQLite file in WAL mode; any thread may call it, other processes may have it open too."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._idle: queue.LifoQueue[sqlite3.Connection] = queue.LifoQueue()
        try:
            # It holds the key that signs links; SQLite's own side files copy these rights.
            path.touch(mode=0o600)
            self._prepare()
        except (OSError, sqlite3.DatabaseError) as error:
            raise InputError(f"{path} cannot be opened as a registry's database: {error}") from error

    def _prepare(self) -> None:
        with self.write() as db:
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version > SCHEMA_VERSION:
                raise InputError(
                    f"{self._path} has schema {version}; this hubctl knows schema {SCHEMA_VERSION}"
                )
            scripts = [_MIGRATIONS[step] for step in range(version, SCHEMA_VERSION)] if version else [_SCHEMA]
            for statement in (one for script in scripts for one in script.split(";\n")):
                db.execute(statement)
            if version != SCHEMA_VERSION:
                db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """A connection that sees one state of the database for as long as the block lasts."""
        with self._transaction("BEGIN") as db:
            yield db

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """A connection holding the one write lock: all that the block does is kept, or none of it."""
        with self._transaction("BEGIN IMMEDIATE") as db:
            yield db

    def close(self) -> None:
        """Close the idle connections; call when no transaction is open."""
        while not self._idle.empty():
            self._idle.get_nowait().close()

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        db = self._take()
        try:
            db.execute(begin)
            yield db
            db.execute("COMMIT")
        finally:
            if db.in_transaction:
                db.execute("ROLLBACK")
            self._idle.put(db)

    def _take(self) -> sqlite3.Connection:
        try:
            return self._idle.get_nowait()
        except queue.Empty:
            # A connection moves between threads but is in one block at a time.
            db = sqlite3.connect(self._path, timeout=30, isolation_level=None, check_same_thread=False)
            db.row_factory = sqlite3.Row
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            db.execute("PRAGMA foreign_keys = ON")
            return db
