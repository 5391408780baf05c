"""Mirrors: of one registry in another, as a cluster without the internet would have them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from huggingface_hub import HfApi

from hubctl.errors import InputError
from hubctl.hub.records import FileInfo
from hubctl.registry.mirror import choose
from tests.registry.test_http import commit, make, put, upload_large
from tests.registry.test_run import hubctl
from tests.registry_server import RegistryServer

LARGE = bytes(range(256)) * 1000
CARD = b"---\nbase_model: hubctl/emoji-64\ntags: [lora]\n---\n# Style\n"


@pytest.fixture
def upstream(registry: RegistryServer) -> RegistryServer:
    assert hubctl_all("remote", "add", "upstream", registry.endpoint).returncode == 0
    return registry


@pytest.fixture
def here(tmp_path: Path) -> Iterator[RegistryServer]:
    with RegistryServer(tmp_path / "here") as server:
        yield server


def hubctl_all(*arguments: str) -> Any:
    command = [sys.executable, "-m", "hubctl", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def mirror(here: RegistryServer, *arguments: str) -> Any:
    done = hubctl("mirror", *arguments, "--remote", "upstream", "--root", str(here.root), "--json")
    return json.loads(done.stdout) if done.returncode == 0 else done


def test_a_mirror_has_the_commit_ids_of_the_original(
    upstream: RegistryServer, here: RegistryServer, alice: httpx.Client, tmp_path: Path
) -> None:
    repo_id = make(alice, "origin", {"README.md": CARD, "a/b.txt": b"text"})
    oid = upload_large(alice, repo_id, LARGE)
    lines = [
        {"key": "lfsFile", "value": {"path": path, "algo": "sha256", "oid": oid}}
        for path in ("w.bin", "x.bin")
    ]
    first = commit(alice, repo_id, *lines).json()["commitOid"]

    done = mirror(here, repo_id, "--exclude", "x.*")
    assert (done["commit"], done["excluded"]) == (first, ["x.bin"])
    assert done["downloaded_bytes"] >= len(LARGE)
    api = HfApi(endpoint=here.endpoint, token=False)
    info = api.model_info(repo_id, revision=first)
    assert info.sha == api.model_info(repo_id).sha == first
    assert "base_model:adapter:hubctl/emoji-64" in (info.tags or [])
    files = [".gitattributes", "README.md", "a/b.txt", "w.bin"]
    assert api.list_repo_files(repo_id) == files
    path = api.hf_hub_download(repo_id, "w.bin", revision=first, cache_dir=tmp_path / "cache")
    assert Path(path).read_bytes() == LARGE
    assert [entry.title for entry in api.list_repo_commits(repo_id)] == [
        f"Mirror of {repo_id} on {upstream.endpoint}"
    ]

    second = commit(alice, repo_id, put("new.txt", b"new")).json()["commitOid"]
    again = mirror(here, repo_id, "--exclude", "x.*")
    assert (again["commit"], again["downloaded_bytes"]) == (second, 3)
    assert api.list_repo_files(repo_id) == [*files[:3], "new.txt", "w.bin"]
    whole = mirror(here, repo_id)  # the same commit, now with nothing left out
    assert (whole["commit"], whole["downloaded_bytes"]) == (second, 0)
    assert "x.bin" in api.list_repo_files(repo_id)
    pinned = mirror(here, f"{repo_id}@{first}")
    assert pinned["commit"] == first
    assert api.model_info(repo_id).sha == second
    assert [tag.name for tag in api.list_repo_refs(repo_id).tags] == [f"commit-{first[:12]}"]
    assert hubctl("gc", "--root", str(here.root), "--older-than", "0s").returncode == 0
    assert hubctl("fsck", "--root", str(here.root)).returncode == 0
    assert api.list_repo_files(repo_id, revision=first) == [*files, "x.bin"]


def test_a_mirror_overwrites_nobody(
    upstream: RegistryServer, here: RegistryServer, alice: httpx.Client
) -> None:
    repo_id = make(alice, "taken", {"x": b"theirs"})
    headers = {"Authorization": f"Bearer {here.token('alice')}"}
    with httpx.Client(base_url=here.endpoint, headers=headers, trust_env=False) as own:
        make(own, "taken", {"x": b"ours"})
        refused = mirror(here, repo_id)
        assert (refused.returncode, "is no mirror" in refused.stderr) == (7, True)
        assert "--as" in refused.stderr
        assert mirror(here, repo_id, "--as", "lab/theirs", "--private")["repo_id"] == "lab/theirs"
        assert own.get("/api/models/lab/theirs").status_code == 404
        assert own.get(f"/{repo_id}/resolve/main/x").content == b"ours"
        assert hubctl("org", "join", "lab", "alice", "--root", str(here.root)).returncode == 0
        assert own.get("/lab/theirs/resolve/main/x").content == b"theirs"


def test_only_a_tag_is_a_repository_too(
    upstream: RegistryServer, here: RegistryServer, alice: httpx.Client
) -> None:
    repo_id = make(alice, "tagged", {"x": b"one"})
    alice.post(f"/api/models/{repo_id}/tag/main", json={"tag": "v/1"}).raise_for_status()
    commit(alice, repo_id, put("x", b"two")).raise_for_status()
    mirror(here, f"{repo_id}@v/1")
    api = HfApi(endpoint=here.endpoint, token=False)
    assert [model.id for model in api.list_models(full=True)] == [repo_id]
    assert [tag.name for tag in api.list_repo_refs(repo_id).tags] == ["v/1"]
    assert mirror(here, "alice/nowhere").returncode == 3


def test_names_that_are_not_allowed_here() -> None:
    facts = FileInfo(size_bytes=1, sha256=None, git_sha1="0" * 40)
    assert choose({"a": facts, "b.ckpt": facts}, ["*.ckpt"]) == ({"a": facts}, ("b.ckpt",))
    for bad in ({"../x": facts}, {"A": facts, "a": facts}, {"con": facts}):
        with pytest.raises(InputError):
            choose(bad, [])
        assert choose(bad, ["*"])[0] == {}
