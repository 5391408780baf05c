"""Base models by name: the embedded ones, folders, and repositories on a hub."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hubctl.errors import InputError, NotFoundError
from hubctl.families import MAX_CLASSES, Family, class_count, detect_family
from hubctl.refs import AdapterRef

OWNER = "hubctl"
"""Embedded bases are known by the ids `hubctl/<name>` everywhere, and by `<name>` for short."""
_FOLDER = Path(__file__).parent / "bases"


@dataclass(frozen=True, kw_only=True, slots=True)
class BaseModel:
    """A base model on disk, and what it is."""

    id: str
    """`owner/name`, or the path when it has no other name."""
    path: Path
    family: Family
    commit: str | None
    """40 hex digits when it came from a hub."""
    sha256: str
    """Over the folder's weights and configuration; see `folder_sha256`."""


FetchBase = Callable[[AdapterRef], tuple[Path, str]]
"""Brings a base from a hub: its local folder and its commit."""


def embedded_bases() -> dict[str, Path]:
    """The base models that come with hubctl, by short name."""
    return {p.parent.name: p.parent for pattern in ("*/model_index.json", "*/preprocessor_config.json")
            for p in sorted(_FOLDER.glob(pattern))}  # fmt: skip


def embedded_path(ref: str) -> Path | None:
    """The folder of the embedded base that `ref` means (`emoji-64` or `hubctl/emoji-64`), or None."""
    owner, slash, name = ref.partition("/")
    return embedded_bases().get(ref) if not slash else embedded_bases().get(name) if owner == OWNER else None


def locate_base(ref: str, *, fetch: FetchBase | None = None) -> BaseModel:
    """Find the base `ref`: an embedded name, a folder, or `owner/name[@revision]`, which `fetch` brings.

    Raises:
        NotFoundError: nothing answers to that name.
        InputError: it is there, but no base model that hubctl runs.
    """
    if (path := embedded_path(ref)) is not None:
        return _described(f"{OWNER}/{path.name}", path, None)
    if ref and Path(ref).is_dir():
        return _described(ref, Path(ref), None)
    names = ", ".join(embedded_bases())
    hint = f"embedded bases: {names}; or name a folder, or OWNER/NAME on your hub"
    try:
        parsed = AdapterRef.parse(ref)
    except InputError:
        raise NotFoundError(f"no base model '{ref}'", hint=hint) from None
    if fetch is None:
        raise NotFoundError(f"no base model '{ref}'", hint=hint)
    path, commit = fetch(parsed)
    return _described(parsed.repo_id, path, commit)


def refuse_excess_classes(base: BaseModel) -> None:
    """Raise `InputError` when a segmentation base has too many classes for its labels, by its config.json."""
    if base.family.task != "image-segmentation" or base.family.headless:
        return
    if (count := class_count(base.path)) > MAX_CLASSES:
        raise InputError(f"{base.id} has {count} classes (limit {MAX_CLASSES})", hint="name another base")


def folder_sha256(folder: Path) -> str:
    """One hash for a base: over sorted lines `relative path NUL sha256` of its safetensors and JSON files."""
    files = sorted(p for p in folder.rglob("*") if p.suffix in (".safetensors", ".json") and p.is_file())
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        total.update(f"{file.relative_to(folder).as_posix()}\0{digest}\n".encode())
    return total.hexdigest()


def _described(name: str, path: Path, commit: str | None) -> BaseModel:
    return BaseModel(
        id=name, path=path, family=detect_family(path), commit=commit, sha256=folder_sha256(path)
    )
