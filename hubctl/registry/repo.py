"""Repositories: who may open them, their references, their files at a revision."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hubctl.errors import AccessError, ConflictError, InputError
from hubctl.registry import commits, quota, removed, rewrite
from hubctl.registry.accounts import READABLE, writer_to
from hubctl.registry.blobs import FileStore
from hubctl.registry.database import Database, now
from hubctl.registry.faults import EntryNotFound, RepoExists, RepoNotFound, RevisionNotFound
from hubctl.registry.names import check_ref_name, check_repo_name

Kind = Literal["model", "dataset", "space"]
RefKind = Literal["branch", "tag"]

MAIN = "main"
_SHORT_COMMIT = re.compile(r"[0-9a-f]{7,40}")
_REF_PREFIXES: dict[str, RefKind] = {"refs/heads/": "branch", "refs/tags/": "tag"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Repo:
    """A repository as its row says; `key` is the database's own number for it."""

    key: int
    kind: Kind
    owner: str
    name: str
    private: bool
    created_at: str
    updated_at: str
    pipeline_tag: str | None
    library_name: str | None
    card: dict[str, Any]
    tags: tuple[str, ...]

    @property
    def id(self) -> str:
        """`owner/name`, as clients call it."""
        return f"{self.owner}/{self.name}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Ref:
    """A branch or tag and the commit it stands on."""

    kind: RefKind
    name: str
    oid: str


class Repositories:
    """All repositories of a registry. `user` is the caller's name, or None for an anonymous reader."""

    def __init__(self, db: Database, blobs: FileStore) -> None:
        self._db = db
        self._blobs = blobs

    # -- whole repositories -----------------------------------------------------------------------

    def create(self, kind: Kind, owner: str, name: str, *, user: str, private: bool) -> Repo:
        """Create a repository with one commit, holding `.gitattributes` as on the Hub.

        Raises:
            RepoExists: the owner has one of that name already.
            AccessError: `user` may not write to what `owner` has.
        """
        check_repo_name(name)
        attributes = commits.put_regular(self._blobs, ".gitattributes", commits.GITATTRIBUTES.encode())
        with self._db.write() as db:
            key = self._insert(db, kind, owner, name, user, private)
            change = commits.Change(title="initial commit", operations=(attributes,))
            commits.append(db, self._blobs, repo=key, branch=MAIN, head=None, change=change, user=user)
            return _load(db, "repos.id = ?", (key,))

    def create_many(
        self, kind: Kind, owner: str, names: Sequence[str], files: Sequence[commits.File]
    ) -> None:
        """Create repositories of one owner with the same files in one commit each, all of them or none.

        Raises:
            RepoExists, AccessError: as `create`.
        """
        with self._db.write() as db:
            for name in names:
                key = self._insert(db, kind, owner, check_repo_name(name), owner, private=False)
                change = commits.Change(title="initial commit", operations=tuple(files))
                commits.append(db, self._blobs, repo=key, branch=MAIN, head=None, change=change, user=owner)

    def duplicate(self, source: Repo, owner: str, name: str, *, user: str, private: bool) -> Repo:
        """Create a repository with the whole history of `source`, which `user` may read; no byte is copied.

        Raises:
            RepoExists, AccessError: as `create`.
            QuotaExceeded: the new owner would keep too much.
        """
        check_repo_name(name)
        with self._db.write() as db:
            key = self._insert(db, source.kind, owner, name, user, private)
            rewrite.duplicate(db, source=source.key, target=key)
            made = _load(db, "repos.id = ?", (key,))
            quota.check_room(db, made.owner)
            return made

    def open(self, kind: Kind, owner: str, name: str, *, user: str | None) -> Repo:
        """The repository, if `user` may read it.

        Raises:
            RepoNotFound: it does not exist, or is private and not for this user.
        """
        with self._db.read() as db:
            return _open(db, kind, owner, name, user)

    def open_to_write(self, kind: Kind, owner: str, name: str, *, user: str | None) -> Repo:
        """The repository, if `user` may change it.

        Raises:
            RepoNotFound: as `open`.
            AccessError: nobody is logged in, or the user may only read it.
        """
        repo = self.open(kind, owner, name, user=user)
        if user is None:
            raise AccessError(f"log in to change {repo.id}")
        with self._db.read() as db:
            writer_to(db, repo.owner, user)
        return repo

    def delete(self, repo: Repo, *, user: str) -> None:
        """Take the repository away; it can be restored until `gc` forgets it."""
        with self._db.write() as db:
            _check_kept(db, repo)
            removed.set_aside(db, repo.key, user=user)

    def removed(self, *, user: str) -> list[removed.Removed]:
        """The removed repositories that `user` may restore, the latest first."""
        with self._db.read() as db:
            return removed.find(db, user=user)

    def restore(self, kind: Kind, owner: str, name: str, *, user: str) -> None:
        """Bring a removed repository back; of several that had this name, the last.

        Raises:
            RepoNotFound: none of this name was removed, or `gc` has forgotten it.
            RepoExists: another one has the name now.
            AccessError: `user` may not write to what `owner` has.
        """
        with self._db.write() as db:
            self._check_free(db, kind, writer_to(db, owner, user), name)
            removed.restore(db, kind, owner, name, user=user)

    def move(self, repo: Repo, owner: str, name: str, *, user: str) -> None:
        """Rename the repository, or give it to another owner.

        Raises:
            RepoExists: the new name is taken.
            AccessError: `user` may not write to what the new owner has.
        """
        check_repo_name(name)
        with self._db.write() as db:
            _check_kept(db, repo)
            owner = writer_to(db, owner, user)
            if (owner, name.lower()) != (repo.owner, repo.name.lower()):
                self._check_free(db, repo.kind, owner, name)
            db.execute(
                "UPDATE repos SET owner = ?, name = ?, updated_at = ? WHERE id = ?",
                (owner, name, now(), repo.key),
            )
            if owner != repo.owner:
                quota.check_room(db, owner)

    def set_private(self, repo: Repo, private: bool) -> None:
        """Hide the repository from everyone but its owner (an organisation's members), or show it."""
        with self._db.write() as db:
            _check_kept(db, repo)
            db.execute("UPDATE repos SET private = ? WHERE id = ?", (private, repo.key))

    # -- references -------------------------------------------------------------------------------

    def refs(self, repo: Repo) -> list[Ref]:
        """All branches and tags, `main` first."""
        with self._db.read() as db:
            rows = db.execute(
                "SELECT kind, name, oid FROM refs WHERE repo = ? ORDER BY name <> ?, name", (repo.key, MAIN)
            )
            return [Ref(kind=row["kind"], name=row["name"], oid=row["oid"]) for row in rows]

    def resolve(self, repo: Repo, revision: str) -> str:
        """The commit that a branch, tag, full or shortened (7 digits) commit id stands for.

        Raises:
            RevisionNotFound: nothing of that name, or more than one commit.
        """
        with self._db.read() as db:
            return _resolve(db, repo, revision)

    def create_ref(self, repo: Repo, kind: RefKind, name: str, at: str) -> None:
        """Create a branch or tag at the revision `at`.

        Raises:
            ConflictError: it exists.
            RevisionNotFound: `at` does not.
        """
        check_ref_name(name)
        with self._db.write() as db:
            _check_kept(db, repo)
            oid = _resolve(db, repo, at)
            try:
                db.execute("INSERT INTO refs VALUES (?, ?, ?, ?)", (repo.key, kind, name, oid))
            except sqlite3.IntegrityError as error:
                raise ConflictError(f"{kind} {name!r} of {repo.id} exists already") from error

    def delete_ref(self, repo: Repo, kind: RefKind, name: str) -> None:
        """Delete a branch or tag.

        Raises:
            RevisionNotFound: there is none of that name.
            InputError: it is `main`.
        """
        if kind == "branch" and name == MAIN:
            raise InputError(f"the branch {MAIN!r} cannot be deleted")
        with self._db.write() as db:
            gone = db.execute(
                "DELETE FROM refs WHERE repo = ? AND kind = ? AND name = ?", (repo.key, kind, name)
            )
            if gone.rowcount == 0:
                raise RevisionNotFound(f"{repo.id} has no {kind} {name!r}")

    # -- content ----------------------------------------------------------------------------------

    def commit(self, repo: Repo, branch: str, change: commits.Change, *, user: str) -> str:
        """Apply `change` to the head of `branch`; returns the new head, or the old one if nothing changed.

        Raises:
            RepoNotFound: the repository was removed while the change was on its way.
            RevisionNotFound: no such branch.
            StaleParent: `change.parent` is not its head any more.
            InputError, EntryNotFound: an operation cannot be done; then none is.
        """
        with self._db.write() as db:
            _check_kept(db, repo)
            head = _ref(db, repo, "branch", branch.removeprefix("refs/heads/"))
            if head is None:
                raise RevisionNotFound(f"{repo.id} has no branch {branch!r} to commit to")
            name = branch.removeprefix("refs/heads/")
            return commits.append(
                db, self._blobs, repo=repo.key, branch=name, head=head, change=change, user=user
            )

    def history(self, repo: Repo, oid: str, *, skip: int, limit: int) -> list[commits.Commit]:
        """Commits from `oid` back to the first, newest first."""
        with self._db.read() as db:
            return commits.history(db, repo.key, oid, skip=skip, limit=limit)

    def commit_details(self, repo: Repo, oids: set[str]) -> dict[str, commits.Commit]:
        """The commits of these ids."""
        with self._db.read() as db:
            return {oid: commits.load(db, repo.key, oid) for oid in oids}

    def files(self, repo: Repo, oid: str) -> dict[str, commits.File]:
        """All files at a commit, by path in order."""
        with self._db.read() as db:
            return commits.files(db, repo.key, oid)

    def file(self, repo: Repo, oid: str, path: str) -> commits.File:
        """One file at a commit.

        Raises:
            EntryNotFound: there is none.
        """
        with self._db.read() as db:
            row = db.execute(
                "SELECT * FROM files WHERE repo = ? AND oid = ? AND path = ?", (repo.key, oid, path)
            ).fetchone()
        if row is None:
            raise EntryNotFound(f"{repo.id} at {oid[:12]} has no file {path!r}", commit=oid)
        return commits.file_of(row)

    def squash(self, repo: Repo, branch: str, title: str, *, user: str) -> str:
        """Put one commit in the place of a branch's history; returns its id.

        Raises:
            RevisionNotFound: no such branch.
        """
        with self._db.write() as db:
            _check_kept(db, repo)
            head = _ref(db, repo, "branch", branch)
            if head is None:
                raise RevisionNotFound(f"{repo.id} has no branch {branch!r} to squash")
            return rewrite.squash(
                db, self._blobs, repo=repo.key, branch=branch, head=head, title=title, user=user
            )

    def large_files(self, repo: Repo, *, after: str, limit: int) -> list[tuple[commits.File, str]]:
        """Large files of the whole history, in the order of their sha256, and when each first came."""
        with self._db.read() as db:
            rows = db.execute(
                "SELECT files.*, MIN(created_at) AS pushed_at FROM files JOIN commits USING (repo, oid)"
                " WHERE repo = ? AND lfs AND sha256 > ? GROUP BY sha256 ORDER BY sha256 LIMIT ?",
                (repo.key, after, limit),
            )
            return [(commits.file_of(row), row["pushed_at"]) for row in rows]

    def drop_large(self, repo: Repo, digests: Collection[str]) -> int:
        """Write the history anew without some large files; returns how many commits changed."""
        with self._db.write() as db:
            return rewrite.drop_large(db, self._blobs, repo=repo.key, digests=digests)

    def check_room(self, repo: Repo, sizes: Mapping[str, int]) -> None:
        """Refuse an upload (sha256 to bytes) that the owner's quota has no room for, before it is sent.

        Raises:
            QuotaExceeded: it has none.
        """
        with self._db.read() as db:
            quota.check_room(db, repo.owner, sizes)

    def _insert(
        self, db: sqlite3.Connection, kind: Kind, owner: str, name: str, user: str, private: bool
    ) -> int:
        owner = writer_to(db, owner, user)
        self._check_free(db, kind, owner, name)
        moment = now()
        key = db.execute(
            "INSERT INTO repos (kind, owner, name, private, created_at, updated_at)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (kind, owner, name, private, moment, moment),
        ).lastrowid
        assert key is not None  # an INSERT always has one
        return key

    def _check_free(self, db: sqlite3.Connection, kind: Kind, owner: str, name: str) -> None:
        taken = db.execute(
            "SELECT owner || '/' || name AS id FROM repos WHERE kind = ? AND owner = ? AND name = ?",
            (kind, owner, name),
        ).fetchone()
        if taken:
            raise RepoExists(f"{kind} {taken['id']} exists already", repo_id=taken["id"])


def repo_of(row: sqlite3.Row) -> Repo:
    """A Repo from a row of `repos` with its `tags` as a JSON list."""
    return Repo(
        key=row["id"],
        kind=row["kind"],
        owner=row["owner"],
        name=row["name"],
        private=bool(row["private"]),
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        pipeline_tag=row["pipeline_tag"],
        library_name=row["library_name"],
        card=json.loads(row["card"]),
        tags=tuple(json.loads(row["tags"])),
    )


REPO_COLUMNS = (
    "repos.*, (SELECT json_group_array(tag) FROM"
    " (SELECT tag FROM repo_tags WHERE repo = repos.id ORDER BY position)) AS tags"
)


def _load(db: sqlite3.Connection, where: str, values: tuple[Any, ...]) -> Repo:
    return repo_of(db.execute(f"SELECT {REPO_COLUMNS} FROM repos WHERE {where}", values).fetchone())


def _open(db: sqlite3.Connection, kind: Kind, owner: str, name: str, user: str | None) -> Repo:
    where, values = f"kind = ? AND owner = ? AND name = ? AND {READABLE}", (kind, owner, name, user)
    row = db.execute(f"SELECT {REPO_COLUMNS} FROM repos WHERE {where}", values).fetchone()
    # A private repository must look exactly like a missing one: its name is a secret too.
    if row is None:
        raise RepoNotFound(f"no {kind} {owner}/{name}, or it is private and not for you")
    return repo_of(row)


def _check_kept(db: sqlite3.Connection, repo: Repo) -> None:
    """Raise `RepoNotFound` if somebody removed the repository since this request opened it."""
    if not db.execute("SELECT 1 FROM repos WHERE id = ? AND owner <> ''", (repo.key,)).fetchone():
        raise RepoNotFound(f"{repo.kind} {repo.id} was removed in the meantime")


def _ref(db: sqlite3.Connection, repo: Repo, kind: RefKind, name: str) -> str | None:
    row = db.execute(
        "SELECT oid FROM refs WHERE repo = ? AND kind = ? AND name = ?", (repo.key, kind, name)
    ).fetchone()
    return row["oid"] if row else None


def _resolve(db: sqlite3.Connection, repo: Repo, revision: str) -> str:
    for prefix, kind in _REF_PREFIXES.items():
        if revision.startswith(prefix) and (oid := _ref(db, repo, kind, revision.removeprefix(prefix))):
            return oid
    name = MAIN if revision == "HEAD" else revision
    if oid := _ref(db, repo, "branch", name) or _ref(db, repo, "tag", name):
        return oid
    if _SHORT_COMMIT.fullmatch(revision):
        # Hex digits sort below 'g': all ids that begin so, from the primary key.
        found = db.execute(
            "SELECT oid FROM commits WHERE repo = ? AND oid >= ? AND oid < ? LIMIT 2",
            (repo.key, revision, revision + "g"),
        ).fetchall()
        if len(found) == 1:
            return str(found[0]["oid"])
    raise RevisionNotFound(f"{repo.id} has no branch, tag or commit {revision!r}")
