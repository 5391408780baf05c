"""The folder `<output>.training`, where a training keeps checkpoint and samples until the adapter is whole.

It goes when training has succeeded, and also when it failed before there was a checkpoint.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from hubctl.adapter.package import WORK_LOCK, refuse_existing
from hubctl.errors import ConflictError, InputError, NotFoundError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """One training's folder."""

    folder: Path

    @property
    def checkpoint(self) -> Path:
        """The last state, from which training can go on."""
        return self.folder / "checkpoint.pt"

    @property
    def samples(self) -> Path:
        """Pictures drawn so far."""
        return self.folder / "samples"

    def finished(self) -> None:
        """Training has made its adapter: nothing here is needed any more."""
        _empty(self)


def work_path(output: Path) -> Path:
    """Where the training that makes `output` works."""
    output = output.absolute()
    return output.parent / f"{output.name}.training"


@contextmanager
def work_folder(output: Path, *, overwrite: bool, resume: bool, restart: bool) -> Iterator[Work]:
    """The working folder of a training that will make `output`, held against others.

    Raises:
        ConflictError: the output is there, an unfinished training is, or one is running.
        NotFoundError: there is nothing to resume.
        InputError: the folder cannot be made, or the disk is full.
    """
    output = output.absolute()
    refuse_existing(output, overwrite=overwrite)
    work = Work(folder=work_path(output))
    if resume and not work.checkpoint.is_file():
        raise NotFoundError(
            f"there is no unfinished training of {output.name}: {work.checkpoint} is not there",
            hint="train without --resume",
        )
    try:
        work.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(work.folder / WORK_LOCK)
        lock.acquire(blocking=False)
    except Timeout as error:
        raise ConflictError(
            f"another training of {output.name} is running", hint="wait for it, or choose another --output"
        ) from error
    except OSError as error:
        raise InputError(
            f"cannot write {work.folder}: {error.strerror}", hint="choose another --output"
        ) from error
    try:
        if work.checkpoint.is_file() and not (resume or restart):
            raise ConflictError(
                f"an unfinished training of {output.name} is in {work.folder}",
                hint="go on with it: add --resume; or give it up: add --restart",
            )
        if not resume:
            _empty(work)
        work.samples.mkdir(exist_ok=True)
        yield work
    # torch's and safetensors' writers wrap what the disk said into errors of their own.
    except (OSError, RuntimeError, SafetensorError) as error:
        if not work.samples.is_dir():
            raise InputError(
                f"{work.folder} was removed while the training worked in it",
                hint="train again, and leave that folder alone until then",
            ) from error
        if not _is_full(error):
            raise
        kept = f"; the checkpoint in {work.folder} is kept" if work.checkpoint.is_file() else ""
        raise InputError(
            f"the disk is full: {work.folder} or {output} could not be written{kept}",
            hint="make room, then train again" + (" with --resume" if kept else ""),
        ) from error
    finally:
        lock.release()
        if not work.checkpoint.is_file():
            shutil.rmtree(work.folder, ignore_errors=True)


def refuse_other_training(now: Mapping[str, Any], then: Mapping[str, Any]) -> None:
    """Raise `InputError`, saying what differs, for a checkpoint of another training or of other versions."""
    settings = [
        f"{group} {name} was {_said(then[group].get(name))}, now {_said(now[group].get(name))}"
        for group in ("settings", "data", "base")
        for name in sorted(now[group].keys() | then[group].keys())
        if now[group].get(name) != then[group].get(name)
    ]
    if settings:
        raise InputError(
            f"the checkpoint is of another training: {'; '.join(settings[:4])}",
            hint="resume with what it began with, or start over: --restart",
        )
    older = {n: v for n, v in then["versions"].items() if now["versions"].get(n) != v}
    if older:
        listed = ", ".join(
            f"{name} {version} (now {now['versions'].get(name)})" for name, version in older.items()
        )
        wanted = " ".join(f"{name}=={version}" for name, version in older.items() if name != "python")
        raise InputError(
            f"the checkpoint was written with other versions, so going on would not be exact: {listed}",
            hint=f"pip install {wanted}, or start over: --restart",
        )


def _is_full(error: BaseException) -> bool:
    """Whether the disk, a quota or a limit on files is behind this error, or behind what led to it."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    if any(f"os error {number}" in str(error) for number in _FULL):  # as Rust says it
        return True
    led = error.__cause__ or error.__context__
    return led is not None and _is_full(led)


def _said(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."


def _empty(work: Work) -> None:
    # The checkpoint first: what is left without one is nobody's.
    work.checkpoint.unlink(missing_ok=True)
    for path in work.folder.iterdir() if work.folder.is_dir() else ():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != WORK_LOCK:
            path.unlink()
