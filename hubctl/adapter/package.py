"""The adapter folder on disk: its manifest, and writing it so that it is whole or absent."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hubctl.errors import AdapterError, ConflictError, HubctlError, InputError
from hubctl.settings import from_mapping

MANIFEST = "hubctl.json"
REPORT = "eval.json"
"""What `hubctl eval` found, in a folder of its own."""
WORK_LOCK = "lock"
"""Held by the training that works in a folder."""
_MADE = (MANIFEST, REPORT, WORK_LOCK)


@dataclass(frozen=True, kw_only=True, slots=True)
class BaseIdentity:
    """The base an adapter was trained on, exactly."""

    id: str
    commit: str | None = None
    sha256: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """How an adapter came to be, for machines."""

    format: int = 1
    task: str
    base: BaseIdentity
    data: dict[str, Any] = field(default_factory=dict)
    """Number of files and sha256 of the training data."""
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)


def manifest_json(manifest: Manifest) -> str:
    """The text of `hubctl.json`."""
    return json.dumps(dataclasses.asdict(manifest), indent=2, sort_keys=True) + "\n"


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of an adapter folder, or None when it has none (made by another tool).

    Raises:
        AdapterError: there is one, but it cannot be understood.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict) or data.get("format") != 1:
            raise AdapterError(f"{path.name} is not a manifest that this hubctl knows", hint="update hubctl")
        return from_mapping(Manifest, data, where=path.name)
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(f"{path.name} is not valid JSON: {error}") from error
    except AdapterError:
        raise
    except HubctlError as error:
        raise AdapterError(f"{path.name} is malformed: {error.message}", hint=error.hint) from error


@contextmanager
def new_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `path` that becomes `path` at the end, or vanishes on any failure.

    Raises:
        ConflictError: `path` exists and is not empty, and `overwrite` is false.
    """
    path = path.absolute()
    refuse_existing(path, overwrite=overwrite)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}", hint="choose another --output") from error
    try:
        yield made
        _ordinary_modes(made)
        refuse_existing(path, overwrite=overwrite)  # somebody else may have made it meanwhile
        _replace(path, made)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _ordinary_modes(folder: Path) -> None:
    """Give the folder and its files the modes that this user's umask gives to new ones.

    mkdtemp and safetensors leave them readable by their owner alone, so that a server under another
    user could not open what was trained.
    """
    mask = os.umask(0o077)
    os.umask(mask)
    folder.chmod(0o777 & ~mask)
    for inner in folder.rglob("*"):
        inner.chmod((0o777 if inner.is_dir() else 0o666) & ~mask)


def _replace(path: Path, made: Path) -> None:
    """Move `made` to `path`; what was there goes once the new folder stands, and comes back if it cannot."""
    if not path.exists():
        made.rename(path)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}-old-", dir=path.parent))
    old = path.rename(aside / "folder")
    try:
        made.rename(path)
    except BaseException:
        old.rename(path)
        aside.rmdir()
        raise
    shutil.rmtree(aside)


def refuse_inputs(output: Path, inputs: Iterable[Path | None]) -> None:
    """Raise `InputError` when making `output` would delete what is read for it; ask before anything is done.

    That is one of `inputs`, a folder above one, or something in one, unless hubctl made that before.
    """
    for path in inputs:
        if path is None:
            continue
        if _lies_in(path, output):
            raise InputError(
                f"{output} cannot be the output: {path} is read, and would be deleted",
                hint="choose another --output",
            )
        if _lies_in(output, path) and not _may_go(output):
            raise InputError(
                f"{output} cannot be the output: it is a part of {path}, which is read",
                hint="choose another --output",
            )


def _lies_in(path: Path, folder: Path) -> bool:
    """Whether `path` is the folder or something in it, by its own name or by where links lead."""
    folders = {folder.absolute(), folder.resolve()}
    return any(folders & {place, *place.parents} for place in (path.absolute(), path.resolve()))


def _may_go(path: Path) -> bool:
    """Whether nothing is there, or something that hubctl made."""
    if not path.is_dir():
        return not path.exists()
    return not any(path.iterdir()) or any((path / name).is_file() for name in _MADE)


def refuse_existing(path: Path, *, overwrite: bool) -> None:
    """Raise `ConflictError` when `path` holds something that may not be replaced; ask before long work.

    A link that leads nowhere cannot be replaced by a folder either: `InputError`.
    """
    if path.is_dir() and not any(path.iterdir()):
        return
    if path.is_symlink() and not path.exists():
        raise InputError(f"{path} is a link to nothing", hint="remove it, or choose another --output")
    if path.exists() and not overwrite:
        raise ConflictError(f"{path} exists already", hint="choose another --output, or add --overwrite")
