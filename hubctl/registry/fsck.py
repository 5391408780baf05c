"""Whether a registry's storage is what its database says, byte by byte."""

from __future__ import annotations

import hashlib
import mmap
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hubctl.errors import InputError
from hubctl.registry import commits, git
from hubctl.registry.blobs import FileStore
from hubctl.registry.database import Database
from hubctl.registry.uploads import Uploads
from hubctl.registry.xet_format import parse_xorb, xorb_hash

_READ_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """Something that is not as it should be."""

    kind: Literal["database", "commit", "blob", "xorb"]
    name: str
    """A digest, or `owner/name@commit`."""
    fault: str
    used_by: str = ""
    """A file of a commit that needs it, if there is one."""
    missing: bool = False


def check(db: Database, blobs: FileStore, xorbs: FileStore, *, contents: bool) -> Iterator[Problem]:
    """Every problem, as it is found; without `contents` only sizes of files are looked at."""
    with db.read() as connection:
        yield from _check_database(connection)
        yield from _check_commits(connection)
        rows = connection.execute(
            "SELECT files.*, called.name AS id"
            " FROM files JOIN called USING (repo) GROUP BY sha256, size, git_id, lfs"
        ).fetchall()
    for row in rows:
        fault = _blob_fault(blobs.path(row["sha256"]), commits.file_of(row), contents)
        if fault and _is_used(db, row["sha256"]):  # `gc` may have taken it meanwhile
            where = f"{row['id']}@{row['oid'][:12]}:{row['path']}"
            missing = blobs.size(row["sha256"]) is None
            yield Problem(kind="blob", name=row["sha256"], fault=fault, used_by=where, missing=missing)
    for digest in xorbs.digests() if contents else ():
        if fault := _xorb_fault(xorbs.path(digest), digest):
            yield Problem(kind="xorb", name=digest, fault=fault)


def quarantine(root: Path, db: Database, blobs: FileStore, xorbs: FileStore, problem: Problem) -> bool:
    """Move a damaged file into `root/damaged`, so that it can be uploaded again; False if there is none."""
    if problem.kind not in ("blob", "xorb") or problem.missing:
        return False
    store = blobs if problem.kind == "blob" else xorbs
    folder = root / "damaged"
    folder.mkdir(mode=0o700, exist_ok=True)
    os.rename(store.path(problem.name), folder / f"{problem.kind}-{problem.name}")
    if problem.kind == "xorb":
        Uploads(db).forget_xorb(problem.name)
    return True


def _check_database(db: sqlite3.Connection) -> Iterator[Problem]:
    for row in db.execute("PRAGMA integrity_check"):
        if row[0] != "ok":
            yield Problem(kind="database", name="integrity", fault=row[0])
    for row in db.execute("PRAGMA foreign_key_check"):
        yield Problem(kind="database", name=row[0], fault=f"a row refers to a missing row of {row[2]}")


def _check_commits(db: sqlite3.Connection) -> Iterator[Problem]:
    rows = db.execute("SELECT commits.*, called.name AS id FROM commits JOIN called USING (repo)")
    for row in rows:
        files = commits.files(db, row["repo"], row["oid"])
        tree = git.tree_ids({path: file.git_id for path, file in files.items()})[""]
        name = f"{row['id']}@{row['oid']}"
        if tree != row["tree"]:
            yield Problem(
                kind="commit", name=name, fault=f"its files make the tree {tree}, not {row['tree']}"
            )
        # A mirrored commit has the id that another Hub gave it, from a history that is not here.
        elif not row["source"]:
            commit = commits.commit_of(row)
            if (oid := commits.commit_id(commit, parent=row["parent"], tree=tree)) != row["oid"]:
                yield Problem(kind="commit", name=name, fault=f"what it says makes the id {oid}")


def _blob_fault(path: Path, file: commits.File, contents: bool) -> str | None:
    try:
        size = path.stat().st_size
        if size != file.size_bytes:
            return f"it has {size} bytes, not {file.size_bytes}"
        sha256 = _sha256(path) if contents else file.sha256
        if sha256 != file.sha256:
            return f"its sha256 is {sha256}"
        if file.lfs:
            git_id = git.blob_id(git.pointer(file.sha256, size))
        else:
            git_id = git.blob_id(path.read_bytes()) if contents else file.git_id
    except FileNotFoundError:
        return "it is missing"
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    return None if git_id == file.git_id else f"its git id is {git_id}, not {file.git_id}"


def _is_used(db: Database, sha256: str) -> bool:
    with db.read() as connection:
        return bool(connection.execute("SELECT 1 FROM files WHERE sha256 = ?", (sha256,)).fetchone())


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while data := stream.read(_READ_BYTES):
            digest.update(data)
    return digest.hexdigest()


def _xorb_fault(path: Path, digest: str) -> str | None:
    try:
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            actual = xorb_hash(data, parse_xorb(data))
    except FileNotFoundError:  # taken by `gc` meanwhile
        return None
    except (InputError, ValueError, OSError) as error:  # ValueError: an empty file cannot be mapped
        return str(error)
    return None if actual == digest else f"its hash is {actual}"
