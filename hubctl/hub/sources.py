"""An adapter wherever it is: a folder, a weights file, a name on a registry, or an address."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from hubctl.adapter.card import read_card_data
from hubctl.adapter.gate import PICKLES, refuse_unsafe_files
from hubctl.adapter.layout import CONFIG_PEFT, find_weights
from hubctl.adapter.new_tokens import is_tokens_file
from hubctl.adapter.package import MANIFEST, read_manifest
from hubctl.errors import AdapterError, InputError, NotFoundError
from hubctl.hub.headers import hollow_folder
from hubctl.hub.records import RepoInfo, pick_weights
from hubctl.paths import check_path
from hubctl.refs import AdapterRef, WebRef

if TYPE_CHECKING:
    from hubctl.hub.client import Hub


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """An adapter that can be read: all of it when it is here, else its header and settings."""

    name: str
    """As it was asked for; with the commit when it is on a registry."""
    path: Path
    """The folder, or the weights file when that stands alone."""
    weights: Path
    local: bool
    """The tensors can be read; else there are holes in their place."""
    sha256: str | None
    """Of the weights, as the registry states it."""
    card: Mapping[str, Any]
    manifest: Mapping[str, Any]
    beside: tuple[str, ...]
    """Names of the other files."""


@contextmanager
def open_adapter(what: str, connect: Callable[[], Hub], *, file: str | None = None) -> Iterator[Source]:
    """Open the adapter `what`: a path, `owner/name[@revision]`, or an address; `file` picks its weights.

    Of an adapter on a registry only headers are read, and small files of settings. `connect` is called for
    a name, not for a path or an address.

    Raises:
        NotFoundError: there is no such path, repository or file.
        AdapterError: it has no safetensors weights, or several and `file` picks none.
    """
    if os.path.exists(what):  # not Path's: that raises when a name is too long for the file system
        yield _local(Path(what), file)
    elif what.startswith(("http://", "https://")):
        from hubctl.hub.remotes import connect_to

        web = WebRef.parse(what)
        with _remote(connect_to(web.endpoint), web.ref, file or web.file) as source:
            yield source
    else:
        try:
            ref = AdapterRef.parse(what)
        except InputError:
            raise NotFoundError(
                f"no folder {what}", hint="name a folder, a weights file, OWNER/NAME or an address"
            ) from None
        with _remote(connect(), ref, file) as source:
            yield source


def _local(path: Path, file: str | None) -> Source:
    whole = path.is_dir()
    if file:
        weights = path / file
        if not weights.is_file():
            raise NotFoundError(f"no file {weights}")
    else:
        if not (whole and any(path.glob("*.safetensors"))):
            refuse_unsafe_files(path)  # nothing but a pickle: there is nothing that may be read
        weights = find_weights(path)[0]
    manifest = read_manifest(path) if whole else None
    others = (other for other in path.rglob("*") if other.is_file()) if whole else ()
    return Source(
        name=str(path / file) if file else str(path),
        path=path,
        weights=weights,
        local=True,
        sha256=None,
        card=read_card_data(path) if whole else {},
        manifest=dataclasses.asdict(manifest) if manifest else {},
        beside=tuple(other.relative_to(path).as_posix() for other in others),
    )


@contextmanager
def _remote(hub: Hub, ref: AdapterRef, file: str | None) -> Iterator[Source]:
    info = hub.repo_info(ref)
    weights = _weights(info, file)
    config = str(PurePosixPath(weights).with_name(CONFIG_PEFT))
    tokens = (name for name in info.files if "/" not in name and is_tokens_file(name) and name != weights)
    with hollow_folder(hub, info, [config, MANIFEST], [weights, *tokens]) as folder:
        manifest = read_manifest(folder)
        yield Source(
            name=f"{info.repo_id}@{info.commit[:12]}",
            path=(folder / weights).parent,
            weights=folder / weights,
            local=False,
            sha256=info.files[weights].sha256,
            card=info.card,
            manifest=dataclasses.asdict(manifest) if manifest else {},
            beside=tuple(sorted(set(info.files) - {weights})),
        )


def _weights(info: RepoInfo, file: str | None) -> str:
    file = check_path(file or pick_weights(info))
    if file not in info.files:
        near = ", ".join(name for name in sorted(info.files) if name.endswith(".safetensors"))
        raise NotFoundError(
            f"{info.repo_id} has no file {file}",
            hint=f"it has {near}" if near else f"hubctl show {info.repo_id}",
        )
    if PurePosixPath(file).suffix.lower() in PICKLES:
        raise AdapterError(
            f"{file} is a pickle, which can run code when loaded", hint="name a safetensors file"
        )
    return file
