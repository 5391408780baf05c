"""What a registry's safetensors headers tell: a base's shapes, an adapter's layout, without the weights.

Only configuration and headers come over the network (range requests): some hundred kilobytes where the
weights are gigabytes. They are laid out as a folder with holes where the tensors would be, and read like any
other.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from hubctl.adapter.base_shapes import BaseShapes, read_base_shapes
from hubctl.adapter.card import read_card_data
from hubctl.adapter.layout import CONFIG_PEFT, AdapterLayout, read_layout
from hubctl.adapter.new_tokens import tokens_file
from hubctl.base_models import OWNER, embedded_path, locate_base
from hubctl.errors import AdapterError, InputError, IntegrityError, NotFoundError
from hubctl.families import detect_family
from hubctl.hub.pull import base_files
from hubctl.hub.records import AdapterInfo, RepoInfo
from hubctl.refs import AdapterRef

if TYPE_CHECKING:
    from hubctl.hub.client import Hub

MAX_CONFIG_BYTES = 16 << 20
"""Larger JSON files are vocabularies; they say nothing about shapes."""


def base_shapes(ref: str, connect: Callable[[], Hub]) -> tuple[str, BaseShapes]:
    """The base that `ref` means (embedded, a folder, or on a hub), and its shapes.

    `connect` is called only when a hub must be asked.

    Raises:
        NotFoundError: nothing answers to that name.
        InputError: it is there, but no base model that hubctl runs.
    """
    embedded = embedded_path(ref)
    if embedded is not None or Path(ref).is_dir():
        # Not locate_base: that hashes the weights, gigabytes that a comparison of shapes has no use for.
        folder = embedded or Path(ref)
        name = f"{OWNER}/{folder.name}" if embedded else ref
        return name, read_base_shapes(folder, detect_family(folder))
    try:
        parsed = AdapterRef.parse(ref)
    except InputError:
        locate_base(ref)  # raises the NotFoundError that lists what there is
        raise
    hub = connect()
    try:
        info = hub.repo_info(parsed)
        return info.repo_id, _shapes_on(hub, info)
    except AdapterError as error:
        raise InputError(error.message, hint=error.hint) from error
    except NotFoundError as error:
        raise NotFoundError(f"no base model '{ref}': {error.message}", hint=error.hint) from error


def base_card(ref: str, connect: Callable[[], Hub]) -> dict[str, Any]:
    """The metadata of the card of the base `ref`; empty where there is none."""
    folder = embedded_path(ref) or Path(ref)
    if folder.is_dir():
        return read_card_data(folder)
    return connect().repo_info(AdapterRef.parse(ref)).card


def remote_layout(hub: Hub, info: AdapterInfo) -> AdapterLayout:
    """The layout of an adapter on a registry; its `weights_file` is only good for its name.

    Raises:
        AdapterError: it is not in a form that hubctl runs.
    """
    files = [name for name in (info.weights_file, tokens_file(info.files)) if name]
    with hollow_folder(hub, info, [CONFIG_PEFT], files) as folder:
        return read_layout(folder)


def _shapes_on(hub: Hub, info: RepoInfo) -> BaseShapes:
    names = base_files(info)
    configs = [name for name in names if name.endswith(".json") and name.count("/") <= 1]
    with hollow_folder(hub, info, configs, []) as folder:
        family = detect_family(folder)
    homes = {"." if component == "model" else component for component in family.components}
    weights = [
        name for name in names if name.endswith(".safetensors") and str(PurePosixPath(name).parent) in homes
    ]
    indexes = [name for name in configs if name.endswith(".index.json")]
    with hollow_folder(hub, info, indexes, weights) as folder:
        return read_base_shapes(folder, family)


@contextmanager
def hollow_folder(hub: Hub, info: RepoInfo, whole: Sequence[str], hollow: Sequence[str]) -> Iterator[Path]:
    """A temporary folder with the files `whole` (those that exist) and the headers of the files `hollow`."""
    with tempfile.TemporaryDirectory(prefix="hubctl-headers-") as made:
        folder = Path(made)
        for name in whole:
            if name in info.files and info.files[name].size_bytes <= MAX_CONFIG_BYTES:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                hub.download(info, name, folder / name)
        for name in hollow:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            head, size = hub.safetensors_header(info, name), info.files[name].size_bytes
            try:
                with (folder / name).open("wb") as file:
                    file.write(head)
                    file.truncate(size)  # a hole: takes no space
            except OSError as error:
                raise IntegrityError(f"{name} of {info.repo_id} cannot have {size:,} bytes") from error
        yield folder
