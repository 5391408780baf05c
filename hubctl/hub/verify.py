"""What lies in the cache, against what the registry promised when it was pulled; without a network.

The promises of a commit stand beside its folder, in `.<commit>.json`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from hubctl.errors import InputError, NotFoundError
from hubctl.hub.cache import KINDS
from hubctl.hub.records import FileInfo, RepoInfo, keeps
from hubctl.refs import AdapterRef
from hubctl.settings import from_mapping


@dataclass(frozen=True, kw_only=True, slots=True)
class Verified:
    """One commit in the cache."""

    kind: str
    repo_id: str
    commit: str
    path: Path
    faults: Mapping[str, str]
    """File to what is wrong with it; empty when everything is as promised."""


def write_promises(folder: Path, info: RepoInfo, names: Iterable[str]) -> None:
    """Keep what the registry says of the files `names`, which will lie in `folder`."""
    promised = {name: dataclasses.asdict(info.files[name]) for name in names}
    made = folder.with_name(f".{folder.name}.json.new")
    made.write_text(json.dumps(promised, indent=1, sort_keys=True), encoding="utf-8")
    made.replace(_promises(folder))


def is_promised(folder: Path, info: RepoInfo, names: Iterable[str]) -> bool:
    """Whether the files in `folder` were pulled on the same promises that `info` makes now."""
    try:
        return _read(folder) == {name: info.files[name] for name in names}
    except (OSError, ValueError, AttributeError, InputError):
        return False


def verify(cache: Path, ref: AdapterRef | None = None) -> list[Verified]:
    """Read every file of `ref`, or of all that is in the cache, and compare hashes.

    Raises:
        NotFoundError: nothing of that name is in the cache.
    """
    found = [
        Verified(
            kind=kind, repo_id="/".join(folder.parts[-3:-1]), commit=folder.name, path=folder,
            faults=_faults(folder),
        )
        for where, kind in KINDS.items()
        for folder in sorted((cache / where).glob("*/*/[0-9a-f]*"))
        if ref is None or _is(ref, folder)
    ]  # fmt: skip
    if not found:
        raise NotFoundError(
            f"{ref} is not in {cache}" if ref else f"there is nothing in {cache}",
            hint="hubctl pull OWNER/NAME",
        )
    return found


def _is(ref: AdapterRef, folder: Path) -> bool:
    return "/".join(folder.parts[-3:-1]) == ref.repo_id and folder.name.startswith(ref.revision or "")


def _faults(folder: Path) -> dict[str, str]:
    try:
        promised = _read(folder)
    except (OSError, ValueError, AttributeError, InputError):
        return {_promises(folder).name: "not there, or damaged: what was promised is not known"}
    here = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if not path.is_dir()}
    faults = {name: "not of this commit" for name in here.keys() - promised.keys()}
    for name, promise in promised.items():
        if name not in here:
            faults[name] = "missing"
        elif not keeps(here[name], promise):
            faults[name] = "changed"
    return dict(sorted(faults.items()))


def _read(folder: Path) -> dict[str, FileInfo]:
    return {
        name: from_mapping(FileInfo, values, where=name)
        for name, values in json.loads(_promises(folder).read_text(encoding="utf-8")).items()
    }


def _promises(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.json")
