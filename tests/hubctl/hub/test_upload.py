"""A commit goes on top of what it was compared with, or nowhere."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hubctl.errors import ConflictError
from hubctl.hub.client import Hub
from hubctl.hub.upload import upload
from hubctl.refs import AdapterRef

if TYPE_CHECKING:
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
