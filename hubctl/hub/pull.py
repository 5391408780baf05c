"""Adapters and bases from a registry into the cache: hash-verified, whole or absent, once per commit.

    $HUBCTL_CACHE/adapters/<owner>/<name>/<commit>/...      $HUBCTL_CACHE/bases/<owner>/<name>/<commit>/...

A folder appears under its commit only when every file in it has been checked; until then it is
`.<commit>.part`, and a download that was stopped, or killed, goes on where it was. One lock per commit lets
several processes ask for the same adapter at once; one of them downloads, the others find it.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from hubctl.adapter.gate import MAX_BYTES, PICKLES, gate
from hubctl.adapter.layout import AdapterLayout, read_layout
from hubctl.adapter.new_tokens import tokens_file
from hubctl.adapter.package import new_folder, refuse_inputs
from hubctl.errors import AdapterError, ConflictError, InputError, IntegrityError
from hubctl.hub.cache import READ_ONLY, make_room, writing
from hubctl.hub.client import AdapterInfo, Hub, RepoInfo
from hubctl.hub.verify import is_promised, write_promises
from hubctl.paths import check_no_collisions, check_path
from hubctl.refs import AdapterRef, PinnedRef
from hubctl.settings import environment

TAKEN = frozenset({
    ".safetensors", ".json", ".md", ".txt", ".png", ".jpg", ".jpeg", ".webp", ".gif", ".svg", ".csv",
    ".toml", ".yaml", ".yml",
})  # fmt: skip
"""Kinds of files that are downloaded; everything else stays where it is."""
BARE = frozenset({"LICENSE", "NOTICE", "recipe.lock"})
"""Names that are downloaded too, whatever kind they seem."""
MAX_FILES = 2000
LOCK_TIMEOUT_S = 600.0
_COMMIT = re.compile(r"[0-9a-f]{40}")
_VARIANT = re.compile(r"\.(fp16|bf16|fp8|non_ema|ema_only)(?=[.-])")


@dataclass(frozen=True, kw_only=True, slots=True)
class Pulled:
    """An adapter on this disk, verified."""

    path: Path
    pinned: PinnedRef
    layout: AdapterLayout
    cached: bool
    """It was here already; nothing was downloaded."""


def pull(
    hub: Hub,
    ref: AdapterRef | PinnedRef,
    *,
    cache: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Pulled:
    """Bring the adapter `ref` into the cache and return its verified folder.

    A `PinnedRef` that is in the cache needs no network. `progress` hears (bytes done, bytes in all).

    Raises:
        NotFoundError: no such adapter or revision.
        AdapterError: it is not sound: pickles only, a foreign format, NaN, limits.
        IntegrityError: the bytes are not the promised ones; nothing is kept.
        InputError: the cache cannot be written to, or has no room.
    """
    cache = cache or environment().cache
    info: AdapterInfo | None = None
    if isinstance(ref, PinnedRef):
        pinned = ref
    else:
        info = hub.adapter_info(ref)
        pinned = info.pinned
    folder = commit_folder(cache / "adapters", pinned.repo_id, pinned.commit)
    with _locked(folder):
        if (layout := _cached(folder, pinned, info)) is not None:
            _mark_used(folder)
            return Pulled(path=folder, pinned=pinned, layout=layout, cached=True)
        if info is None:
            info = hub.adapter_info(AdapterRef(pinned.repo_id, pinned.commit))
            if info.pinned.sha256 != pinned.sha256:
                raise IntegrityError(
                    f"{pinned} has other weights on {hub} than were asked for",
                    hint=f"hubctl show {pinned.repo_id}",
                )
        layout = _download(hub, info, folder, adapter_files(info), progress)
    make_room(cache, environment().cache_quota)
    return Pulled(path=folder, pinned=pinned, layout=layout, cached=False)


def pull_base(
    hub: Hub,
    ref: AdapterRef,
    *,
    cache: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Path, str]:
    """Bring a base model into the cache; its folder and commit."""
    cache = cache or environment().cache
    info = hub.repo_info(ref)
    folder = commit_folder(cache / "bases", info.repo_id, info.commit)
    with _locked(folder):
        if not folder.is_dir():
            with _growing(folder) as part:
                _fetch(hub, info, part, names := base_files(info), progress)
                write_promises(folder, info, names)
        _mark_used(folder)
    make_room(cache, environment().cache_quota)
    return folder, info.commit


def copy_out(pulled: Pulled, target: Path, *, overwrite: bool = False) -> None:
    """Copy a pulled adapter to a folder of the user's choice."""
    refuse_inputs(target, [pulled.path])
    with new_folder(target, overwrite=overwrite) as made:
        shutil.copytree(pulled.path, made, dirs_exist_ok=True)


def commit_folder(root: Path, repo_id: str, commit: str) -> Path:
    """Where a repository's commit lies under `root`.

    Raises:
        IntegrityError: the registry's commit is not a commit id, and must not become part of a path.
    """
    ref = AdapterRef.parse(repo_id)
    if ref.revision or not _COMMIT.fullmatch(commit):
        raise IntegrityError(f"the registry names a commit of {repo_id} that is none: {commit[:60]!r}")
    return root.joinpath(*repo_id.split("/"), commit)


def adapter_files(info: AdapterInfo) -> list[str]:
    """The files of an adapter's repository that are downloaded."""
    kept = (info.weights_file, tokens_file(info.files))
    names = [name for name in _safe(info) if name in kept or not name.endswith(".safetensors")]
    if (size := sum(info.files[name].size_bytes for name in names)) > MAX_BYTES:
        raise AdapterError(f"{info.repo_id} has {size:,} bytes (limit {MAX_BYTES:,})")
    return names


def base_files(info: RepoInfo) -> list[str]:
    """The files of a base model's repository that are needed to run it.

    Beside a diffusers pipeline's folders many repositories hold the same weights again, as one large file and
    as half-precision variants: those are left out.
    """
    wanted = _safe(info)
    if "model_index.json" in info.files:
        wanted = [name for name in wanted if "/" in name or not name.endswith(".safetensors")]
    names = set(wanted)
    kept = [name for name in wanted if not _VARIANT.search(name) or _VARIANT.sub("", name) not in names]
    if not any(name.endswith(".safetensors") for name in kept):
        pickles = any(PurePosixPath(name).suffix in PICKLES for name in info.files)
        raise AdapterError(
            f"{info.repo_id} holds no safetensors weights{', only pickles' if pickles else ''}",
            hint="name a base saved with safetensors",
        )
    return kept


def _safe(info: RepoInfo) -> list[str]:
    """Names that are taken, checked."""
    try:
        names = [
            check_path(name)
            for name in sorted(info.files)
            if PurePosixPath(name).suffix.lower() in TAKEN or PurePosixPath(name).name in BARE
        ]
        check_no_collisions(names)
    except InputError as error:
        raise AdapterError(f"{info.repo_id} is refused: {error.message}") from error
    if len(names) > MAX_FILES:
        raise AdapterError(f"{info.repo_id} has {len(names):,} files (limit {MAX_FILES:,})")
    return names


def _download(
    hub: Hub,
    info: AdapterInfo,
    folder: Path,
    names: list[str],
    progress: Callable[[int, int], None] | None,
) -> AdapterLayout:
    with _growing(folder) as part:
        _fetch(hub, info, part, names, progress)
        gate(part, None)
        write_promises(folder, info, names)
    return read_layout(folder)


@contextmanager
def _growing(folder: Path) -> Iterator[Path]:
    """A folder that becomes `folder` at the end.

    Whatever stops the work leaves it, for the next try to go on with; only faults of the content end it.
    """
    part = folder.with_name(f".{folder.name}.part")
    part.mkdir(exist_ok=True)
    try:
        yield part
    except (AdapterError, IntegrityError):
        shutil.rmtree(part)
        raise
    part.rename(folder)


def _fetch(
    hub: Hub, info: RepoInfo, target: Path, names: list[str], progress: Callable[[int, int], None] | None
) -> None:
    total, done = sum(info.files[name].size_bytes for name in names), 0
    for left in [path for path in target.rglob("*") if not path.is_dir()]:
        if left.is_symlink() or left.relative_to(target).as_posix() not in names:
            left.unlink()  # not of a download of ours

    def count(chunk: int) -> None:
        nonlocal done
        done += chunk
        if progress is not None:
            progress(done, total)

    for name in names:
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        hub.download(info, name, path, on_bytes=count)


def _cached(folder: Path, pinned: PinnedRef, info: AdapterInfo | None) -> AdapterLayout | None:
    """The layout of the cached folder if its weights are still the ones that `pinned` promises.

    Where the registry was asked (`info`), the other files must have come on its word too: another registry
    may have the same commit, with the same weights and a configuration of its own.
    """
    if not folder.is_dir():
        return None
    if info is None or is_promised(folder, info, adapter_files(info)):
        try:
            layout = read_layout(folder)
            with layout.weights_file.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() == pinned.sha256:
                    return layout
        except (AdapterError, OSError):
            pass  # damaged on disk: the same as not being here
    shutil.rmtree(folder)
    return None


def _mark_used(folder: Path) -> None:
    """Say when it was last used, to whoever makes room in the cache; where nobody can, nobody is told."""
    with suppress(OSError):
        os.utime(folder)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Alone with a commit. One that lies where nobody may write is as it stays: it is not waited for."""
    from filelock import FileLock, Timeout

    lock = folder.parent / f".{folder.name}.lock"
    turn = FileLock(lock, timeout=LOCK_TIMEOUT_S)
    with writing(folder):
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            turn.acquire()
        except Timeout as error:
            raise ConflictError(
                f"another process has been downloading {folder} for long", hint=f"rm {lock}"
            ) from error
        except OSError as error:
            if error.errno not in READ_ONLY or not folder.is_dir():
                raise
        try:
            if turn.is_locked:
                for abandoned in folder.parent.glob(f".{folder.name}-*"):  # by a download that was killed
                    shutil.rmtree(abandoned)
            yield
        finally:
            turn.release()
