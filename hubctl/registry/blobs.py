"""Files named by the hash of their content, complete or absent.

A file is drafted beside its final place, flushed to disk, and renamed: whoever looks, also after a crash or a
power cut, finds all of it or none of it.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hubctl.errors import InputError, IntegrityError

_SPARE_DISK_BYTES = 64 * 1024 * 1024
_DIGEST = re.compile(r"[0-9a-f]{64}")


def check_digest(digest: object) -> str:
    """Return `digest` if it is 64 lower-case hex digits; nothing else may ever become part of a path."""
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise InputError(f"{str(digest)[:80]!r} is not a digest of 64 lower-case hex digits")
    return digest


class FileStore:
    """Files under `root`, each named by 64 hex digits (`ab/cdef...`). Threads and processes may share it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._drafts = root / "drafts"
        self._drafts.mkdir(parents=True, exist_ok=True)

    def path(self, digest: str) -> Path:
        """Where the file of that digest is, or would be."""
        check_digest(digest)
        return self.root / digest[:2] / digest[2:]

    def size(self, digest: str) -> int | None:
        """Bytes of the file, or None if it is not here."""
        try:
            return self.path(digest).stat().st_size
        except FileNotFoundError:
            return None

    def touch(self, digest: str) -> None:
        """Make the file as young as a new one, so that `gc` leaves it; harmless if it is not here."""
        with suppress(FileNotFoundError):
            os.utime(self.path(digest), follow_symlinks=False)

    def digests(self) -> Iterator[str]:
        """The names of all files, in order."""
        for folder in sorted(self.root.iterdir()):
            for path in sorted(folder.iterdir()) if folder.is_dir() and folder != self._drafts else ():
                if _DIGEST.fullmatch(digest := folder.name + path.name):
                    yield digest

    def drafts(self) -> Iterator[Path]:
        """Files that nobody has published yet, those of running uploads among them."""
        yield from self._drafts.iterdir()

    def check_fits(self, size_bytes: int) -> None:
        """Refuse, before it is sent or put together, what the disk has no room for.

        Raises:
            InputError: it has none.
        """
        free = shutil.disk_usage(self.root).free - _SPARE_DISK_BYTES
        if size_bytes > free:
            raise InputError(
                f"a file of {size_bytes} bytes does not fit: the registry has {max(free, 0)} bytes left"
            )

    def put(self, data: bytes) -> str:
        """Store `data` under its sha256 and return that."""
        with self.draft() as draft:
            draft.write(data)
            return draft.publish(draft.sha256)

    @contextmanager
    def draft(self) -> Iterator[Draft]:
        """A new file that nobody sees until it is published; gone afterwards if it was not."""
        path = self._drafts / secrets.token_hex(16)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        draft = Draft(self, path, descriptor)
        try:
            yield draft
        finally:
            os.close(descriptor)
            path.unlink(missing_ok=True)

    def aside(self, name: str) -> Path:
        """Where `Draft.set_aside` puts the draft that it calls `name`."""
        return self._drafts / name

    def sweep(self) -> int:
        """Remove drafts that a killed process left; only safe while nobody writes. Returns how many."""
        stale = list(self.drafts())
        for path in stale:
            path.unlink()
        return len(stale)


class Draft:
    """A file being written; `FileStore.draft` makes it. One thread at a time."""

    def __init__(self, store: FileStore, path: Path, descriptor: int) -> None:
        self.path = path
        self.size_bytes = 0
        self._store = store
        self._descriptor = descriptor
        self._hash = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """Of what was written so far."""
        return self._hash.hexdigest()

    def write(self, data: bytes) -> None:
        """Append `data`."""
        self._hash.update(data)
        self.size_bytes += len(data)
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]

    def sync(self) -> None:
        """Bring what was written so far to the disk; may run while more is written."""
        os.fdatasync(self._descriptor)

    def read_back(self) -> str:
        """Take what somebody else wrote into the file at `path` for the draft's own; returns its sha256."""
        self._hash, self.size_bytes = hashlib.sha256(), 0
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        while data := os.read(self._descriptor, 1 << 20):
            self._hash.update(data)
            self.size_bytes += len(data)
        return self.sha256

    def set_aside(self, name: str) -> None:
        """Keep the file as a draft called `name`, until somebody joins it to others or sweeps it away."""
        os.rename(self.path, self._store.aside(name))

    def publish(self, digest: str) -> str:
        """Give the file its name, once it is safe on disk; the caller vouches that `digest` fits."""
        final = self._store.path(digest)
        os.fsync(self._descriptor)
        if not final.parent.exists():
            final.parent.mkdir(exist_ok=True)
            _fsync_folder(self._store.root)
        try:
            os.rename(self.path, final)
        except FileNotFoundError as error:  # `gc` takes drafts that are too old
            raise InputError("the upload took too long", hint="start it again") from error
        _fsync_folder(final.parent)
        return digest

    def publish_sha256(self, promised: str) -> str:
        """Publish under the sha256 that was promised.

        Raises:
            IntegrityError: the content has another one; nothing was published.
        """
        if self.sha256 != promised:
            raise IntegrityError(
                f"promised sha256 {promised} but the {self.size_bytes} bytes have {self.sha256}"
            )
        return self.publish(promised)


def _fsync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
