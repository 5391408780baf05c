"""A copy of a running registry, which is itself a registry."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from hubctl.errors import InputError, IntegrityError
from hubctl.registry.auth import DATABASE_FILE
from hubctl.registry.blobs import FileStore
from hubctl.registry.database import Database
from hubctl.registry.run import only_server_of

_COPY_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Copied:
    """What a backup took."""

    files: int
    """Copied now; those of an earlier backup in the same folder stay."""
    copied_bytes: int
    kept_files: int


def back_up(root: Path, source: Database, target: Path, progress: Callable[[int, int], object]) -> Copied:
    """Copy the registry in `root` as it is at this moment into `target`, beside what an earlier backup left.

    The database changes last, so a backup that is cut short leaves the earlier one whole. Xorbs stay behind;
    the copy has new epochs. `progress` is told bytes done and bytes in all.

    Raises:
        ConflictError: `target` is being served.
        InputError: `target` cannot be used.
        IntegrityError: some files are damaged; all others were copied.
    """
    if target.resolve().is_relative_to(root.resolve()) or root.resolve().is_relative_to(target.resolve()):
        raise InputError(f"{target} and {root} lie within each other", hint="back up into another folder")
    with only_server_of(target):
        draft = target / f"{DATABASE_FILE}.new"
        draft.unlink(missing_ok=True)
        with source.read() as connection:
            wanted = _copy_database(connection, draft)
        copied, damaged = _copy_blobs(
            FileStore(root / "blobs"), FileStore(target / "blobs"), wanted, progress
        )
        for suffix in ("-wal", "-shm"):  # of the database that is replaced: they must not meet the new one
            (target / (DATABASE_FILE + suffix)).unlink(missing_ok=True)
        os.rename(draft, target / DATABASE_FILE)
        _fsync(target)
    if damaged:
        raise IntegrityError(
            f"{len(damaged)} files of the registry are damaged, {damaged[0]} among them; all else is copied",
            hint=f"hubctl registry fsck --root {root}",
        )
    return copied


def _copy_database(source: sqlite3.Connection, path: Path) -> dict[str, int]:
    """Copy the database to `path`; returns the size of each file that it names."""
    path.touch(mode=0o600)
    with closing(sqlite3.connect(path, isolation_level=None)) as copy:
        source.backup(copy)
        copy.execute("PRAGMA journal_mode = DELETE")
        copy.execute("UPDATE users SET xet_epoch = lower(hex(randomblob(4)))")
        copy.execute("DELETE FROM held WHERE kind = 'xorb'")
        sizes = dict(copy.execute("SELECT DISTINCT sha256, size FROM files").fetchall())
    _fsync(path)
    return sizes


def _copy_blobs(
    source: FileStore, target: FileStore, wanted: dict[str, int], progress: Callable[[int, int], object]
) -> tuple[Copied, list[str]]:
    missing = {digest: size for digest, size in wanted.items() if target.size(digest) != size}
    total, done, damaged = sum(missing.values()), 0, []
    for digest, size in missing.items():
        try:
            with source.path(digest).open("rb") as stream, target.draft() as draft:
                while data := stream.read(_COPY_BYTES):
                    draft.write(data)
                draft.publish_sha256(digest)
        except (FileNotFoundError, IntegrityError):
            damaged.append(digest)
        done += size
        progress(done, total)
    taken = Copied(
        files=len(missing) - len(damaged),
        copied_bytes=total - sum(missing[digest] for digest in damaged),
        kept_files=len(wanted) - len(missing),
    )
    return taken, damaged


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
