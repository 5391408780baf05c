"""The cache: its commits, what is pinned, what goes when room is needed; and what trainings encoded."""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from hubctl.errors import InputError, NotFoundError
from hubctl.refs import AdapterRef

if TYPE_CHECKING:
    from filelock import BaseFileLock

KINDS = {"adapters": "adapter", "bases": "base"}
ENCODED = "encoded"
"""Folder of the images and prompts that trainings encoded; `train.encoded` keeps it within a limit."""
GRACE_S = 600.0
"""What was asked for this lately may just be being read: pulled, but not loaded yet."""
READ_ONLY = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
"""Numbers of the errors of whoever writes where nobody, or not this account, may."""


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Around what writes to the cache: a disk that is full, or must not be written to, is explained.

    Raises:
        InputError: it is; `folder` stands for files that the system does not name.
    """
    try:
        yield
    except (ConnectionError, TimeoutError):
        raise  # of a network, and no disk's
    except OSError as error:
        if error.errno is None:
            raise
        raise InputError(
            f"cannot write {error.filename or folder}: {error.strerror}",
            hint="make room there, or set HUBCTL_CACHE to another folder",
        ) from error


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One commit in the cache, or the beginning of one; or all that trainings encoded."""

    kind: str
    repo_id: str
    commit: str
    path: Path
    size_bytes: int
    used_s: float
    """When it was last pulled or found, in seconds since 1970."""
    pinned: bool
    whole: bool
    """False for what a stopped download left."""
    batches: int = 0
    """Of encoded images and prompts; none in a commit."""


def entries(cache: Path) -> list[Entry]:
    """The commits in the cache, the latest used first."""
    found = []
    for where, kind in KINDS.items():
        for path in (cache / where).glob("*/*/*"):
            commit = path.name.removeprefix(".").removesuffix(".part")
            whole = path.name == commit
            if path.is_dir() and path.name in (commit, f".{commit}.part"):
                found.append(
                    Entry(
                        kind=kind,
                        repo_id="/".join(path.parts[-3:-1]),
                        commit=commit,
                        path=path,
                        size_bytes=_size(path),
                        used_s=path.stat().st_mtime,
                        pinned=_pin(path.with_name(commit)).exists(),
                        whole=whole,
                    )
                )
    return sorted(found, key=lambda entry: (-entry.used_s, str(entry.path)))


def encoded(cache: Path) -> list[Entry]:
    """What trainings keep of encoded images and prompts, as one entry, where there is some."""
    folder = cache / ENCODED
    files = [path.stat() for path in folder.glob("*.safetensors")]
    if not files:
        return []
    return [
        Entry(
            kind="encoded",
            repo_id="images and prompts",
            commit="",
            path=folder,
            size_bytes=_size(folder),
            used_s=max(file.st_mtime for file in files),
            pinned=False,
            whole=True,
            batches=len(files),
        )
    ]


def forget_encoded(cache: Path) -> None:
    """Delete all of it; a training that runs encodes again what it still looks for."""
    shutil.rmtree(cache / ENCODED, ignore_errors=True)


def matching(found: Sequence[Entry], ref: AdapterRef, cache: Path) -> list[Entry]:
    """The whole commits of `found` that `ref` can mean: all of a repository, or those of a (short) commit id.

    Raises:
        NotFoundError: there is none.
    """
    named = [
        entry
        for entry in found
        if entry.whole and entry.repo_id == ref.repo_id and entry.commit.startswith(ref.revision or "")
    ]
    if not named:
        raise NotFoundError(f"{ref} is not in {cache}", hint=f"hubctl pull {ref}")
    return named


def to_evict(
    found: Sequence[Entry], quota_bytes: int, now_s: float, held: Collection[Path] = ()
) -> list[Entry]:
    """What has to go so that the rest is at most `quota_bytes`: the longest unused first.

    Never what is pinned, `held` by another process, or was used within `GRACE_S`; so the rest can be more.
    """
    total = sum(entry.size_bytes for entry in found)
    gone = []
    for entry in sorted(found, key=lambda entry: (entry.used_s, str(entry.path))):
        if total <= quota_bytes:
            break
        if not entry.pinned and entry.path not in held and now_s - entry.used_s >= GRACE_S:
            gone.append(entry)
            total -= entry.size_bytes
    return gone


def evict(cache: Path, quota_bytes: int, now_s: float) -> list[Entry]:
    """Delete what `to_evict` names, and more in place of what turns out to be held; what was deleted."""
    held: set[Path] = set()
    gone = []
    left = entries(cache)
    while chosen := to_evict(left, quota_bytes, now_s, held):
        entry = chosen[0]
        if _delete(entry):
            gone.append(entry)
            left.remove(entry)
        else:
            held.add(entry.path)
    return gone


def set_pin(entry: Entry, *, pinned: bool) -> None:
    """Keep `entry` from being evicted, or no longer."""
    with writing(entry.path):
        if pinned:
            _pin(entry.path).touch()
        else:
            _pin(entry.path).unlink(missing_ok=True)


def lease(folder: Path) -> BaseFileLock:
    """Keep the commit in `folder` from being evicted until this process ends or releases the lease."""
    from filelock import FileLock

    held = FileLock(folder.with_name(f".{folder.name}.lease-{uuid4().hex}"))
    try:
        held.acquire()
    except OSError as error:
        if error.errno not in READ_ONLY:
            raise  # and where nobody may write, nobody evicts
    return held


def make_room(cache: Path, quota_bytes: int | None) -> None:
    """Bring the cache within its quota, if it has one and as far as `to_evict` lets it."""
    if quota_bytes is not None:
        evict(cache, quota_bytes, time.time())


def _delete(entry: Entry) -> bool:
    """Delete a commit unless another process has it locked or leased, or has pinned it meanwhile."""
    from filelock import FileLock, Timeout

    whole = entry.path.with_name(entry.commit)
    try:
        with writing(entry.path), FileLock(entry.path.with_name(f".{entry.commit}.lock"), timeout=0):
            if _pin(whole).exists() or _leased(whole):
                return False
            # Away in one step: whoever looks for it finds all of it, or nothing.
            aside = entry.path.with_name(f".{entry.commit}-gone")
            shutil.rmtree(aside, ignore_errors=True)  # of a deletion that was killed
            entry.path.rename(aside)
            shutil.rmtree(aside)
            if entry.whole:
                entry.path.with_name(f".{entry.commit}.json").unlink(missing_ok=True)
    except Timeout:
        return False
    return True


def _leased(folder: Path) -> bool:
    """Whether a living process has leased it; leases of those that are gone are cleared away."""
    from filelock import FileLock, Timeout

    for path in folder.parent.glob(f".{folder.name}.lease-*"):
        try:
            with FileLock(path, timeout=0):
                path.unlink(missing_ok=True)
        except Timeout:
            return True
    return False


def _pin(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.pinned")


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())
