"""A folder onto a registry: judged first, uploaded in one commit after that."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from hubctl.adapter.base_shapes import BaseShapes
from hubctl.adapter.card import first_base_model, read_card_data
from hubctl.adapter.check import Fit, check_fit
from hubctl.adapter.contents import Dialect, kohya_file, kohya_layout
from hubctl.adapter.findings import Finding
from hubctl.adapter.gate import (
    gate,
    gate_headers,
    refuse_excess,
    refuse_misfit,
    refuse_unsafe_files,
    refuse_unsaid_encoder,
)
from hubctl.adapter.layout import AdapterLayout
from hubctl.adapter.package import read_manifest
from hubctl.errors import AdapterError, ConflictError, InputError, NotFoundError
from hubctl.families import detect_family
from hubctl.hub.client import Hub, Pushed
from hubctl.hub.headers import base_card, base_shapes
from hubctl.hub.preflight import (
    Plan,
    changes,
    find_licence_faults,
    find_local_paths,
    refuse_secrets,
    refuse_unreadable_card,
)
from hubctl.hub.upload import upload
from hubctl.paths import check_no_collisions, check_path
from hubctl.refs import AdapterRef, check_repo_id

Kind = Literal["adapter", "base"]
Stage = Callable[[str], None]
LARGE_BYTES = 1 << 20
"""Smaller files are hashed in no time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """A sound adapter beside a base."""

    layout: AdapterLayout
    base_id: str
    shapes: BaseShapes

    @property
    def fit(self) -> Fit:
        """The verdict."""
        return check_fit(self.layout.modules, self.layout.heads, self.shapes, self.layout.tokens)

    def refuse_misfit(self) -> None:
        """Raise `AdapterMismatchError` unless it fits."""
        refuse_misfit(self.layout, self.base_id, self.shapes)


def push(
    hub: Hub,
    folder: Path,
    repo_id: str | None = None,
    *,
    kind: Kind = "adapter",
    private: bool = False,
    message: str | None = None,
    tag: str | None = None,
    also: Sequence[Dialect] = (),
    stage: Stage = lambda text: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Pushed:
    """Upload `folder` as `repo_id` (the user's own name and the folder's, when None).

    Nothing is sent before `plan_push` has passed. `tag` becomes a name of the commit; `also` adds copies
    of the adapter in other forms. `stage` hears what happens, in words, and `progress` (bytes done, bytes in
    all) of the upload.

    Raises:
        AccessError: no token, a wrong one, or no right to write there.
        AdapterError, InputError: the folder is refused; the message says why.
        ConflictError: there is a tag of this name at another commit.
        NotFoundError: the folder, or the base that the card names, is not there.
        UnavailableError: the registry cannot be reached.
    """
    with pushed_files(folder, also) as files, hashing(files.values()) as hashes:
        plan = _plan(hub, folder, files, repo_id, kind, tag)
        pushed = _send(hub, folder, files, plan, private, message, hashes, stage, progress)
    if tag and hub.refs(plan.repo_id, "tag").get(tag) != pushed.commit:
        hub.add_ref(AdapterRef(plan.repo_id, pushed.commit), "tag", tag)
    return replace(pushed, warnings=plan.warnings)


def _send(
    hub: Hub,
    folder: Path,
    files: Mapping[str, Path],
    plan: Plan,
    private: bool,
    message: str | None,
    hashes: Mapping[Path, Future[bytes]],
    stage: Stage,
    progress: Callable[[int, int], None],
) -> Pushed:
    total, sent = sum(plan.sizes.values()), 0
    stage(f"Uploading {len(plan.sizes)} files, {total / 1e6:.1f} MB, as {plan.repo_id} to {hub.name}")

    def count(size: int) -> None:
        nonlocal sent
        sent += size
        progress(min(sent, total), total)  # a part that was sent again counts once

    return upload(
        hub,
        files,
        plan.repo_id,
        parent=plan.parent,
        message=message or f"Push {folder.resolve().name} with hubctl",
        private=private,
        hashes=hashes,
        on_bytes=count,
    )


def plan_push(
    hub: Hub,
    folder: Path,
    repo_id: str | None = None,
    *,
    kind: Kind = "adapter",
    tag: str | None = None,
    also: Sequence[Dialect] = (),
) -> Plan:
    """All that can be said before a byte is sent: whether `folder` may be pushed, and what that would change.

    An adapter must be sound, name its base and fit it; a base must be one that hubctl runs, in safetensors.
    No text may hold a secret, and the token must be allowed to write. Raises what `push` raises.
    """
    with pushed_files(folder, also) as files:
        return _plan(hub, folder, files, repo_id, kind, tag)


def _plan(
    hub: Hub, folder: Path, files: Mapping[str, Path], repo_id: str | None, kind: Kind, tag: str | None
) -> Plan:
    if repo_id is not None:
        check_repo_id(repo_id)
    refuse_secrets(files)
    refuse_unreadable_card(files)
    warnings: list[Finding] = []
    if kind == "base":
        check_base(folder)
    else:
        compared = compare(folder, lambda: hub)
        compared.refuse_misfit()
        card = read_card_data(folder)
        warnings += find_local_paths(files, compared.layout.header.metadata)
        warnings += find_licence_faults(card, base_card(base_model_of(folder), lambda: hub))
    hub.need_token(f"push {folder}")
    if repo_id is None:
        repo_id = default_repo_id(hub.whoami(), folder)
    hub.check_write(repo_id)
    try:
        info = hub.repo_info(AdapterRef(repo_id))
    except NotFoundError:
        info = None
    plan = Plan(
        repo_id=repo_id,
        parent=info.commit if info else None,
        changes=changes(files, info.files if info else {}),
        sizes={name: path.stat().st_size for name, path in files.items()},
        warnings=warnings,
    )
    there = hub.refs(repo_id, "tag").get(tag) if tag and info else None
    if there and not (plan.unchanged and there == plan.parent):
        raise ConflictError(
            f"{repo_id} has a tag '{tag}' at {there[:12]}",
            hint=f"choose another --tag, or hubctl tag {repo_id} {tag} --delete",
        )
    return plan


@contextmanager
def hashing(paths: Iterable[Path]) -> Iterator[dict[Path, Future[bytes]]]:
    """The sha256 of each of the large files, computed while the block looks at the same files."""
    with ThreadPoolExecutor(1) as pool:
        try:
            yield {path: pool.submit(_sha256, path) for path in paths if path.stat().st_size >= LARGE_BYTES}
        finally:
            pool.shutdown(cancel_futures=True)


def _sha256(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


@contextmanager
def pushed_files(folder: Path, also: Sequence[Dialect] = ()) -> Iterator[dict[str, Path]]:
    """Everything that goes up, by its path in the repository.

    Beside the folder's own files these are, for each dialect of `also`, a copy of the adapter in that form,
    made for as long as the block lasts, in a subfolder: diffusers and peft load what is at the top.

    Raises:
        NotFoundError: there is no such folder.
        AdapterError: a dialect has no place for a part of the adapter.
        ConflictError: the folder has a file where a copy would go.
    """
    if not folder.is_dir():
        raise NotFoundError(
            f"no folder {folder}", hint="hubctl push DIR (the folder that `hubctl train` wrote)"
        )
    files = folder_files(folder)
    with tempfile.TemporaryDirectory(prefix="hubctl-push-") as made:
        for dialect in also:
            from hubctl.adapter.contents import read_adapter  # numpy, for those who ask for it
            from hubctl.adapter.save import save_adapter

            refuse_unsafe_files(folder)
            target = Path(made) / dialect
            target.mkdir()
            name = folder.resolve().name
            save_adapter(read_adapter(folder), target, dialect, name=name, base=base_model_of(folder))
            for path in target.iterdir():
                place = f"{dialect}/{path.name}"
                if place in files:
                    raise ConflictError(
                        f"{folder} has a {place} already", hint=f"push without --also {dialect}"
                    )
                files[place] = path
        yield files


def compare(
    folder: Path, connect: Callable[[], Hub], base: str | None = None, *, values: bool = True
) -> Compared:
    """Judge the adapter in `folder`, and compare it with `base` or the base that its card names.

    Without `values` no number is read, so that NaN and infinity pass; kohya's files are compared too then.

    Raises:
        AdapterError: it is unsound, or its card names no base.
        AdapterMismatchError: it does not say for which of the base's two text encoders of one class it is.
        NotFoundError: the base is not to be found.
    """
    refuse_unsafe_files(folder)
    named = base or base_model_of(folder)
    layout = gate(folder, None) if values else _layout(folder)
    base_id, shapes = base_shapes(named, connect)
    refuse_unsaid_encoder(layout, base_id, shapes)
    return Compared(layout=layout, base_id=base_id, shapes=shapes)


def _layout(folder: Path) -> AdapterLayout:
    """The layers by headers alone; of kohya's files too, which `gate` refuses."""
    found = kohya_file(folder)
    if found is None:
        return gate_headers(folder)
    layout = kohya_layout(*found)
    refuse_excess(layout)
    return layout


def check_base(folder: Path) -> None:
    """Refuse a base-model folder that holds pickles, or is of a kind that hubctl does not run."""
    refuse_unsafe_files(folder)
    detect_family(folder)
    if not any(folder.rglob("*.safetensors")):
        raise AdapterError(f"{folder} holds no safetensors weights", hint="save the base with safetensors")


def base_model_of(folder: Path) -> str:
    """The base that the card of `folder` names.

    Raises:
        AdapterError: it names none; the hint is the line to add.
    """
    if named := first_base_model(read_card_data(folder)):
        return named
    manifest = read_manifest(folder)
    known = manifest.base.id if manifest else "OWNER/NAME"
    raise AdapterError(
        f"the card of {folder} (README.md) does not say which base_model the adapter is for",
        hint=f"add the line `base_model: {known}` between the --- lines at the top of README.md",
    )


def default_repo_id(user: str, folder: Path) -> str:
    """`user/<folder's name>`, with what a repository's name may not hold replaced.

    Raises:
        InputError: nothing of the name is left.
    """
    name = re.sub(
        r"-{2,}", "-", re.sub(r"\.{2,}", ".", re.sub(r"[^A-Za-z0-9._-]", "-", folder.resolve().name))
    )
    try:
        return check_repo_id(f"{user}/{name.strip('-.')}")
    except InputError:
        raise InputError(
            f"the folder's name '{folder.resolve().name}' makes no repository name",
            hint="add --repo OWNER/NAME",
        ) from None


def folder_files(folder: Path) -> dict[str, Path]:
    """What is uploaded: every regular file by its path in the repository; hidden files and caches stay here.

    Raises:
        InputError: a symbolic link (it could send a file from elsewhere), a pipe, or an unsafe name.
    """
    files: dict[str, Path] = {}
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__pycache__")
        for name in sorted(names) + folders:
            path = Path(root) / name
            if path.is_symlink():
                raise InputError(f"{path} is a symbolic link", hint="replace it by the file itself")
            if not (path.is_file() or path.is_dir()):
                # Whoever reads a pipe waits until somebody writes to it.
                raise InputError(f"{path} is a pipe, socket or device", hint=f"rm {path}")
        for name in sorted(names):
            if not name.startswith("."):
                path = Path(root) / name
                files[check_path(path.relative_to(folder).as_posix())] = path
    check_no_collisions(files)
    if not files:
        raise InputError(f"{folder} is empty", hint="hubctl push DIR (the folder that `hubctl train` wrote)")
    return files
