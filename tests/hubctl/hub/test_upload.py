"""A commit goes on top of what it was compared with, or nowhere."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest

from hubctl.errors import ConflictError, InputError
from hubctl.hub.client import Hub
from hubctl.hub.upload import upload
from hubctl.refs import AdapterRef
from tests.hubctl.hub.odd_server import CountingProxy, serving
from tests.registry_server import RegistryServer

_numbers = itertools.count()


@pytest.fixture
def hub(registry: RegistryServer) -> Hub:
    return Hub(registry.endpoint, registry.token(f"uploader{next(_numbers)}"), "local")


def files(folder: Path, text: str) -> dict[str, Path]:
    path = folder / f"{text}.txt"
    path.write_text(text)
    return {"notes.txt": path}


def commit(hub: Hub, folder: Path, text: str, parent: str | None) -> str:
    repo = f"{hub.whoami()}/notes"
    return upload(hub, files(folder, text), repo, parent=parent, message=text).commit


@pytest.mark.parametrize("existed", [False, True])
def test_nobody_overwrites_what_they_have_not_seen(hub: Hub, tmp_path: Path, existed: bool) -> None:
    seen = commit(hub, tmp_path, "old", None) if existed else None
    theirs = commit(hub, tmp_path, "theirs", seen)
    with pytest.raises(ConflictError, match=f"{theirs[:12]} by somebody else") as caught:
        commit(hub, tmp_path, "mine", seen)
    assert "hubctl push --dry-run" in str(caught.value.hint)
    assert hub.repo_info(AdapterRef(f"{hub.whoami()}/notes")).commit == theirs


def test_a_commit_whose_answer_was_lost_is_found_again(hub: Hub, tmp_path: Path) -> None:
    seen = commit(hub, tmp_path, "old", None)
    made = commit(hub, tmp_path, "new", seen)
    assert commit(hub, tmp_path, "new", seen) == made
    assert len(hub.api().list_repo_commits(f"{hub.whoami()}/notes")) == 3


def test_a_repository_that_was_just_created_counts_as_new(hub: Hub, tmp_path: Path) -> None:
    hub.api().create_repo(f"{hub.whoami()}/notes")
    assert commit(hub, tmp_path, "first", None)


def test_a_registry_without_room_says_so(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(random.Random(0).randbytes(3_000_000))
    with RegistryServer(tmp_path / "root") as registry:
        full = Hub(registry.endpoint, registry.token("alice"), "local")
        commit(full, tmp_path, "first", None)
        registry.limit_files(2_000_000)
        with pytest.raises(InputError, match="the registry has no room on its disk"):
            upload(full, {path.name: path}, "alice/x", parent=None, message="m")


def test_no_registry_is_asked_where_to_write(hub: Hub, tmp_path: Path) -> None:
    """Xet's client would take `local:///some/folder` for an answer, and write its chunks there."""
    path = tmp_path / "w.safetensors"
    path.write_bytes(random.Random(0).randbytes(3_000_000))
    sent: list[int] = []
    proxy = CountingProxy(hub.endpoint)
    with serving(proxy) as endpoint:
        through = Hub(endpoint, hub.token, "proxy")
        made = upload(
            through, {path.name: path}, f"{hub.whoami()}/x", parent=None, message="m", on_bytes=sent.append
        )
    asked = [path for _, path, _ in proxy.seen]
    assert not [path for path in asked if "xet" in path]
    assert sum(sent) == 3_000_000
    copy = hub.api().hf_hub_download(made.repo_id, path.name, cache_dir=tmp_path / "hf")
    assert Path(copy).read_bytes() == path.read_bytes()
