"""A commit goes on top of what it was compared with, or nowhere."""

from __future__ import annotations

import itertools
import random
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from hubctl.errors import ConflictError, InputError, NotFoundError
from hubctl.hub.client import Hub
from hubctl.hub.undo import restore
from hubctl.hub.upload import upload
from hubctl.refs import AdapterRef
from tests.hubctl.hub.odd_server import CountingProxy, always, serving
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


def test_a_repository_that_somebody_else_makes_meanwhile_is_gone_on_with(hub: Hub, tmp_path: Path) -> None:
    repo, passed_on = f"{hub.whoami()}/both", CountingProxy(hub.endpoint)
    hub.api().create_repo(repo)
    missing = [always(404, b"{}", X_Error_Code="RepoNotFound")]

    def answer(request: BaseHTTPRequestHandler) -> None:
        (missing.pop() if missing and repo in request.path else passed_on)(request)

    with serving(answer) as endpoint:
        upload(Hub(endpoint, hub.token, "proxy"), files(tmp_path, "new"), repo, parent=None, message="m")
    assert not missing
    assert "notes.txt" in hub.repo_info(AdapterRef(repo)).files


UNREADABLE = "---\ntags: [a\n---\n"


def readme(folder: Path, text: str) -> dict[str, Path]:
    path = folder / "README.md"
    path.write_text(text)
    return {path.name: path}


def test_a_repository_whose_first_commit_is_refused_goes_again(hub: Hub, tmp_path: Path) -> None:
    repo = f"{hub.whoami()}/refused"
    upload(hub, files(tmp_path, "old"), repo, parent=None, message="m")
    hub.delete(repo)
    with pytest.raises(InputError, match=r"README\.md"):
        upload(hub, readme(tmp_path, UNREADABLE), repo, parent=None, message="m")
    with pytest.raises(NotFoundError):
        hub.repo_info(AdapterRef(repo))
    restore(hub, repo)
    assert "notes.txt" in hub.repo_info(AdapterRef(repo)).files


def test_a_repository_that_was_there_stays_when_a_commit_is_refused(hub: Hub, tmp_path: Path) -> None:
    repo = f"{hub.whoami()}/there"
    hub.api().create_repo(repo)
    with pytest.raises(InputError, match=r"README\.md"):
        upload(hub, readme(tmp_path, UNREADABLE), repo, parent=None, message="m")
    assert set(hub.repo_info(AdapterRef(repo)).files) == {".gitattributes"}


def test_a_hub_that_deletes_nothing_leaves_an_empty_repository_and_it_is_said(
    hub: Hub, tmp_path: Path
) -> None:
    repo, passed_on = f"{hub.whoami()}/kept", CountingProxy(hub.endpoint)
    forbidden = always(403, b"{}")

    def answer(request: BaseHTTPRequestHandler) -> None:
        (forbidden if request.command == "DELETE" else passed_on)(request)

    with serving(answer) as endpoint, pytest.raises(InputError, match=r"README\.md") as caught:
        upload(
            Hub(endpoint, hub.token, "proxy"), readme(tmp_path, UNREADABLE), repo, parent=None, message="m"
        )
    assert caught.value.hint == f"hubctl remove {repo} (made for this push, and empty)"


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
