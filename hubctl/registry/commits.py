"""What a commit does: operations on the files of its parent, a new tree, a new id, a moved branch."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatchcase

from hubctl.errors import InputError
from hubctl.paths import check_no_collisions, check_path
from hubctl.registry import git, quota
from hubctl.registry.blobs import FileStore
from hubctl.registry.card import MAX_CARD_BYTES, read_card
from hubctl.registry.database import now
from hubctl.registry.faults import EntryNotFound, StaleParent

LFS_PATTERNS = (
    "*.7z", "*.arrow", "*.bin", "*.bz2", "*.ckpt", "*.ftz", "*.gz", "*.h5", "*.joblib", "*.lfs.*",
    "*.mlmodel", "*.model", "*.msgpack", "*.npy", "*.npz", "*.onnx", "*.ot", "*.parquet", "*.pb",
    "*.pickle", "*.pkl", "*.pt", "*.pth", "*.rar", "*.safetensors", "saved_model/**/*", "*.tar.*",
    "*.tar", "*.tflite", "*.tgz", "*.wasm", "*.xz", "*.zip", "*.zst", "*tfevents*",
)  # fmt: skip
GITATTRIBUTES = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LFS_PATTERNS)

README = "README.md"


@dataclass(frozen=True, kw_only=True, slots=True)
class File:
    """A file in a tree."""

    path: str
    sha256: str
    size_bytes: int
    git_id: str
    """Id of the content, or for a large file that of its pointer, as on the Hub."""
    lfs: bool
    changed_in: str = ""
    """The commit that gave it this content."""

    @property
    def etag(self) -> str:
        """What clients key their cache by: sha256 of a large file, git id of a small one."""
        return self.sha256 if self.lfs else self.git_id


@dataclass(frozen=True, kw_only=True, slots=True)
class Delete:
    """Remove a file, or a folder with all below it."""

    path: str
    folder: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """A commit before it is one."""

    title: str
    description: str = ""
    parent: str | None = None
    """The head that the client saw (7 digits are enough); None takes whatever is there."""
    operations: tuple[File | Delete, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Commit:
    """A commit in a history."""

    oid: str
    author: str
    title: str
    description: str
    created_at: str


def put_regular(blobs: FileStore, path: str, data: bytes) -> File:
    """Store a small file's bytes; returns the operation that puts it at `path`."""
    check_path(path)
    return File(path=path, sha256=blobs.put(data), size_bytes=len(data), git_id=git.blob_id(data), lfs=False)


def put_large(path: str, sha256: str, size_bytes: int) -> File:
    """The operation that puts a stored large file at `path`."""
    check_path(path)
    git_id = git.blob_id(git.pointer(sha256, size_bytes))
    return File(path=path, sha256=sha256, size_bytes=size_bytes, git_id=git_id, lfs=True)


def is_large_by_name(path: str) -> bool:
    """Whether `.gitattributes` sends the file to large storage whatever its size."""
    name = path.rpartition("/")[2]
    if path.startswith("saved_model/"):
        return True
    return any(fnmatchcase(name, pattern) for pattern in LFS_PATTERNS if "/" not in pattern)


def append(
    db: sqlite3.Connection,
    blobs: FileStore,
    *,
    repo: int,
    branch: str,
    head: str | None,
    change: Change,
    user: str,
) -> str:
    """Put `change` on top of `head` and move `branch` there, in the caller's transaction.

    Returns the new commit's id, or `head` when the tree stays as it is: a repeated request makes no second
    commit.

    Raises:
        StaleParent: `change.parent` is not `head`.
        InputError, EntryNotFound: an operation cannot be done.
        QuotaExceeded: the repository's owner would keep too much.
    """
    if change.parent is not None and not (len(change.parent) >= 7 and (head or "").startswith(change.parent)):
        raise StaleParent(
            f"parent commit {change.parent[:40]} is not the head of {branch!r} any more: it is {head}"
        )
    for operation in change.operations:
        # Only here, where nothing else writes, is it sure that `gc` has not just taken an old upload away.
        if isinstance(operation, File) and blobs.size(operation.sha256) != operation.size_bytes:
            raise InputError(f"{operation.path!r} is not here any more", hint="upload it again")
    owner = db.execute("SELECT owner FROM repos WHERE id = ?", (repo,)).fetchone()["owner"]
    new = {one.sha256: one.size_bytes for one in change.operations if isinstance(one, File)}
    quota.check_room(db, owner, new)
    before = files(db, repo, head) if head else {}
    after = _apply(before, change.operations)
    check_no_collisions(after)
    tree = git.tree_ids({path: file.git_id for path, file in after.items()})[""]
    if head and tree == load_tree(db, repo, head):
        return head
    commit = Commit(oid="", author=user, title=change.title, description=change.description, created_at=now())
    oid = write(db, repo, commit, parent=head, tree=after)
    db.execute(
        "INSERT INTO refs VALUES (?, 'branch', ?, ?) ON CONFLICT DO UPDATE SET oid = excluded.oid",
        (repo, branch, oid),
    )
    if branch == "main":
        index(db, blobs, repo, after)
    db.execute("UPDATE repos SET updated_at = ? WHERE id = ?", (commit.created_at, repo))
    return oid


def write(
    db: sqlite3.Connection, repo: int, commit: Commit, *, parent: str | None, tree: dict[str, File]
) -> str:
    """Write a commit with all its files; returns its id, which follows from the rest.

    `commit.oid` is not read. A file without `changed_in` is the work of this commit.
    """
    tree_id = git.tree_ids({path: file.git_id for path, file in tree.items()})[""]
    oid = commit_id(commit, parent=parent, tree=tree_id)
    # The same change to two branches within a second is one commit: the id says all there is.
    db.execute(
        "INSERT OR IGNORE INTO commits (repo, oid, parent, tree, author, title, description, created_at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (repo, oid, parent, tree_id, commit.author, commit.title, commit.description, commit.created_at),
    )
    write_files(db, repo, oid, tree)
    return oid


def write_files(db: sqlite3.Connection, repo: int, oid: str, tree: dict[str, File]) -> None:
    """Write the files of the commit `oid`; those without `changed_in` are its own work."""
    db.executemany(
        "INSERT OR IGNORE INTO files VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            (repo, oid, path, file.sha256, file.size_bytes, file.git_id, file.lfs, file.changed_in or oid)
            for path, file in tree.items()
        ),
    )


def commit_id(commit: Commit, *, parent: str | None, tree: str) -> str:
    """The id that git would give to this commit."""
    message = f"{commit.title}\n\n{commit.description}".rstrip() + "\n"
    time_s = int(datetime.fromisoformat(commit.created_at).timestamp())
    return git.commit_id(tree=tree, parent=parent, author=commit.author, time_s=time_s, message=message)


def files(db: sqlite3.Connection, repo: int, oid: str) -> dict[str, File]:
    """All files at a commit, by path in order."""
    rows = db.execute("SELECT * FROM files WHERE repo = ? AND oid = ? ORDER BY path", (repo, oid))
    return {row["path"]: file_of(row) for row in rows}


def file_of(row: sqlite3.Row) -> File:
    """A File from a row of `files`."""
    return File(
        path=row["path"],
        sha256=row["sha256"],
        size_bytes=row["size"],
        git_id=row["git_id"],
        lfs=bool(row["lfs"]),
        changed_in=row["changed_in"],
    )


def load(db: sqlite3.Connection, repo: int, oid: str) -> Commit:
    """The commit `oid`, which must exist."""
    return next(iter(history(db, repo, oid, skip=0, limit=1)))


def load_tree(db: sqlite3.Connection, repo: int, oid: str) -> str:
    """The id of the root folder at the commit `oid`, which must exist."""
    row = db.execute("SELECT tree FROM commits WHERE repo = ? AND oid = ?", (repo, oid)).fetchone()
    return str(row["tree"])


def history(db: sqlite3.Connection, repo: int, oid: str, *, skip: int, limit: int) -> list[Commit]:
    """Commits from `oid` back to the first, newest first."""
    rows = db.execute(
        """WITH RECURSIVE line(oid, depth) AS (
             SELECT ?, 0 UNION ALL
             SELECT parent, depth + 1 FROM line JOIN commits USING (oid)
             WHERE repo = ? AND parent IS NOT NULL
           )
           SELECT commits.* FROM line JOIN commits USING (oid) WHERE repo = ?
           ORDER BY depth LIMIT ? OFFSET ?""",
        (oid, repo, repo, limit, skip),
    )
    return [commit_of(row) for row in rows]


def commit_of(row: sqlite3.Row) -> Commit:
    """A Commit from a row of `commits`."""
    return Commit(
        oid=row["oid"],
        author=row["author"],
        title=row["title"],
        description=row["description"],
        created_at=row["created_at"],
    )


def _apply(before: dict[str, File], operations: Iterable[File | Delete]) -> dict[str, File]:
    after = dict(before)
    for operation in operations:
        if isinstance(operation, File):
            old = before.get(operation.path)
            # Same content: keep the old entry, so that it stays the work of the commit that brought it.
            after[operation.path] = old if old and old.git_id == operation.git_id else operation
            continue
        prefix = operation.path.rstrip("/") + "/"
        gone = [path for path in after if path.startswith(prefix)] if operation.folder else []
        if not operation.folder and operation.path in after:
            gone = [operation.path]
        if not gone:
            kind = "folder" if operation.folder else "file"
            raise EntryNotFound(f"cannot delete {operation.path!r}: no such {kind}")
        for path in gone:
            del after[path]
    return after


def index(db: sqlite3.Connection, blobs: FileStore, repo: int, tree: dict[str, File]) -> None:
    """Take tags, task and library from the README of `tree`, the files on main."""
    readme = tree.get(README)
    if readme is None:
        text = ""
    elif readme.size_bytes > MAX_CARD_BYTES * 4:
        raise InputError(f"README.md has {readme.size_bytes} bytes; {MAX_CARD_BYTES * 4} is the most")
    else:
        text = blobs.path(readme.sha256).read_bytes().decode("utf-8", "replace")
    card = read_card(text, tree.keys())
    db.execute(
        "UPDATE repos SET pipeline_tag = ?, library_name = ?, card = ? WHERE id = ?",
        (card.pipeline_tag, card.library_name, json.dumps(card.data), repo),
    )
    db.execute("DELETE FROM repo_tags WHERE repo = ?", (repo,))
    db.executemany(
        "INSERT INTO repo_tags VALUES (?, ?, ?)", ((repo, tag, place) for place, tag in enumerate(card.tags))
    )
