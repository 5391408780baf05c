"""Removed repositories: out of everybody's sight, back by one request, gone for good with gc."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from hubctl.registry.auth import create_token
from hubctl.registry.commits import Change, put_regular
from hubctl.registry.faults import RepoNotFound
from hubctl.registry.services import open_services
from tests.registry.test_http import commit, make, put, upload_large
from tests.registry.test_run import hubctl
from tests.registry.test_upkeep import LARGE, lfs, run, stored
from tests.registry_server import RegistryServer


@pytest.fixture
def own(tmp_path: Path) -> Iterator[RegistryServer]:
    with RegistryServer(tmp_path / "own") as server:
        yield server


def client(registry: RegistryServer, user: str) -> httpx.Client:
    headers = {"Authorization": f"Bearer {registry.token(user)}"}
    return httpx.Client(base_url=registry.endpoint, headers=headers, trust_env=False)


def delete(caller: httpx.Client, repo_id: str) -> int:
    return caller.request("DELETE", "/api/repos/delete", json={"name": repo_id}).status_code


def restore(caller: httpx.Client, repo_id: str) -> httpx.Response:
    return caller.post("/api/repos/restore", json={"name": repo_id, "type": "model"})


def test_a_removed_repository_comes_back_whole(own: RegistryServer) -> None:
    with client(own, "alice") as alice, client(own, "bob") as bob:
        repo_id = make(alice, "style", {"README.md": b"---\ntags: [lora]\n---\n"}, private=True)
        oid = upload_large(alice, repo_id, LARGE)
        commit(alice, repo_id, lfs("w.bin", oid)).raise_for_status()
        alice.post(f"/api/models/{repo_id}/tag/main", json={"tag": "v1"}).raise_for_status()
        before = alice.get(f"/api/models/{repo_id}?blobs=true").json()
        refs = alice.get(f"/api/models/{repo_id}/refs").json()
        assert delete(alice, repo_id) == 200

        for caller in (alice, bob):
            assert caller.get(f"/api/models/{repo_id}").status_code == 404
            assert caller.get(f"/{repo_id}/resolve/v1/w.bin").status_code == 404
            assert caller.get("/api/models", params={"search": "style"}).json() == []
        assert alice.get("/api/settings/repositories").json() == []
        assert bob.get("/api/repos/removed").json() == []
        assert restore(bob, repo_id).status_code == 403
        (kept,) = alice.get("/api/repos/removed").json()
        assert (kept["id"], kept["type"], kept["private"], kept["removedBy"]) == (
            repo_id, "model", True, "alice",
        )  # fmt: skip
        assert run("gc", own, "--older-than", "0s")["repositories"] == 0
        assert run("fsck", own) == []

        assert restore(alice, repo_id.upper()).status_code == 200
        now = alice.get(f"/api/models/{repo_id}?blobs=true").json()
        assert {**now, "lastModified": ""} == {**before, "lastModified": ""}
        assert alice.get(f"/api/models/{repo_id}/refs").json() == refs
        assert alice.get(f"/{repo_id}/resolve/v1/w.bin").content == LARGE
        assert alice.get("/api/repos/removed").json() == []
        assert restore(alice, repo_id).status_code == 409  # it is there


def test_the_name_is_free_and_the_last_one_removed_comes_back(own: RegistryServer) -> None:
    with client(own, "alice") as alice:
        repo_id = make(alice, "style", {"x": b"first"})
        assert delete(alice, repo_id) == 200
        make(alice, "style", {"x": b"second"})
        taken = restore(alice, repo_id)
        assert (taken.status_code, "exists already" in taken.text) == (409, True)
        assert delete(alice, repo_id) == 200
        assert [one["id"] for one in alice.get("/api/repos/removed").json()] == [repo_id, repo_id]
        assert restore(alice, repo_id).status_code == 200
        assert alice.get(f"/{repo_id}/resolve/main/x").content == b"second"
        alice.post("/api/repos/move", json={"fromRepo": repo_id, "toRepo": "alice/other"}).raise_for_status()
        assert restore(alice, repo_id).status_code == 200
        assert alice.get(f"/{repo_id}/resolve/main/x").content == b"first"


def test_gc_forgets_what_was_removed_long_ago(own: RegistryServer) -> None:
    with client(own, "alice") as alice:
        make(alice, "kept", {"x": b"kept"})
        kept = stored(own)
        repo_id = make(alice, "gone", {"y": b"only here"})
        oid = upload_large(alice, repo_id, LARGE)
        commit(alice, repo_id, lfs("w.bin", oid)).raise_for_status()
        assert delete(alice, repo_id) == 200
        # Somebody who knows a hash gets nothing by it any more.
        with client(own, "bob") as bob:
            theft = make(bob, "theft")
            assert commit(bob, theft, lfs("w.bin", oid)).status_code == 400
        planned = run("gc", own, "--older-than", "0s", "--keep-removed", "0s", "--dry-run")
        assert (planned["repositories"], planned["blobs"]) == (1, 2)
        assert {**planned, "dry_run": False} == run("gc", own, "--older-than", "0s", "--keep-removed", "0s")
        assert stored(own) == kept
        assert restore(alice, repo_id).status_code == 404
        assert run("fsck", own) == []


def test_what_was_removed_takes_no_quota_until_it_is_back(own: RegistryServer) -> None:
    with client(own, "alice") as alice:
        repo_id = make(alice, "big")
        oid = upload_large(alice, repo_id, LARGE)
        commit(alice, repo_id, lfs("w.bin", oid)).raise_for_status()
        assert delete(alice, repo_id) == 200
        run_quota(own, "alice", "20kB")
        make(alice, "small", {"x": b"fits"})
        refused = restore(alice, repo_id)
        assert (refused.status_code, "may keep" in refused.text) == (403, True)
        assert [one["id"] for one in alice.get("/api/repos/removed").json()] == [repo_id]


def test_the_next_user_of_a_name_has_no_claim(own: RegistryServer) -> None:
    with client(own, "eve") as eve:
        repo_id = make(eve, "secret", {"x": b"secret"}, private=True)
        assert delete(eve, repo_id) == 200
    assert hubctl("user", "remove", "eve", "--root", str(own.root)).returncode == 0
    with client(own, "eve") as another:
        assert another.get("/api/repos/removed").json() == []
        assert restore(another, repo_id).status_code == 404
    assert run("fsck", own) == []


def test_members_of_an_organisation_undo_for_each_other(own: RegistryServer) -> None:
    for words in (
        ("add", "studio"),
        ("join", "studio", "alice"),
        ("join", "studio", "carol", "--role", "read"),
    ):
        for user in ("alice", "carol"):
            own.token(user)
        assert hubctl("org", *words, "--root", str(own.root)).returncode == 0
    with client(own, "alice") as alice, client(own, "carol") as carol:
        alice.post("/api/repos/create", json={"name": "studio/style"}).raise_for_status()
        commit(alice, "studio/style", put("x", b"x")).raise_for_status()
        assert delete(alice, "studio/style") == 200
        assert carol.get("/api/repos/removed").json() == []
        assert restore(carol, "studio/style").status_code == 403
        assert restore(alice, "studio/style").status_code == 200


def run_quota(registry: RegistryServer, name: str, size: str) -> None:
    assert hubctl("quota", name, size, "--root", str(registry.root)).returncode == 0


def test_what_is_on_its_way_to_a_removed_repository_goes_nowhere(tmp_path: Path) -> None:
    create_token(tmp_path, "alice")
    services = open_services(tmp_path)
    repos = services.repos
    opened = repos.create("model", "alice", "style", user="alice", private=False)
    first, late = (
        Change(title=title, operations=(put_regular(services.blobs, "x.txt", title.encode()),))
        for title in ("first", "late")
    )
    head = repos.commit(opened, "main", first, user="alice")
    repos.delete(opened, user="alice")
    for change in (
        lambda: repos.commit(opened, "main", late, user="alice"),
        lambda: repos.create_ref(opened, "tag", "v1", "main"),
        lambda: repos.move(opened, "alice", "other", user="alice"),
        lambda: repos.set_private(opened, False),
        lambda: repos.squash(opened, "main", "one", user="alice"),
        lambda: repos.delete(opened, user="alice"),
    ):
        with pytest.raises(RepoNotFound, match="model alice/style was removed in the meantime"):
            change()
    repos.restore("model", "alice", "style", user="alice")
    kept = repos.open("model", "alice", "style", user="alice")
    assert [(ref.name, ref.oid) for ref in repos.refs(kept)] == [("main", head)]
    services.close()
