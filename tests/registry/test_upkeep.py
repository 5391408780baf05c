"""fsck, gc and backup: beside a running registry, and against damage done on purpose."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from hubctl.registry.auth import opened
from hubctl.registry.blobs import FileStore
from hubctl.registry.gc import collect
from tests.registry.test_http import commit, make, put, upload_large
from tests.registry.test_run import hubctl
from tests.registry.test_stock_client import play
from tests.registry_server import RegistryServer

LARGE = bytes(range(256)) * 1000


@pytest.fixture
def own(tmp_path: Path) -> Iterator[RegistryServer]:
    """A registry that a test may damage."""
    with RegistryServer(tmp_path / "own") as server:
        yield server


@pytest.fixture
def alice(own: RegistryServer) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {own.token('alice')}"}
    with httpx.Client(base_url=own.endpoint, headers=headers, trust_env=False) as client:
        yield client


def lfs(path: str, oid: str) -> dict[str, Any]:
    return {"key": "lfsFile", "value": {"path": path, "algo": "sha256", "oid": oid}}


def run(name: str, registry: RegistryServer, *options: str) -> Any:
    done = hubctl(name, "--root", str(registry.root), "--json", *options)
    assert done.returncode in (0, 6), done.stderr
    return json.loads(done.stdout)


def stored(registry: RegistryServer, store: str = "blobs") -> set[str]:
    files = (registry.root / store).glob("??/*")
    return {path.parent.name + path.name for path in files}


def test_gc_takes_what_nothing_leads_to(own: RegistryServer, alice: httpx.Client) -> None:
    repo_id = make(alice, "kept", {"x": b"kept"})
    kept_oid = upload_large(alice, repo_id, LARGE)
    commit(alice, repo_id, lfs("kept.bin", kept_oid)).raise_for_status()
    kept = stored(own)
    branch = alice.post(f"/api/models/{repo_id}/branch/dev")
    branch.raise_for_status()
    on_dev = upload_large(alice, repo_id, LARGE + b"dev")
    body = "\n".join(
        json.dumps(line) for line in ({"key": "header", "value": {"summary": "s"}}, lfs("d.bin", on_dev))
    )
    dev = alice.post(f"/api/models/{repo_id}/commit/dev", content=body).json()["commitOid"]
    make(alice, "gone", {"y": b"only here"})
    upload_large(alice, repo_id, LARGE + b"never committed")
    assert run("gc", own, "--older-than", "0s")["commits"] == 0
    assert kept | {on_dev} < stored(own)
    alice.request("DELETE", f"/api/models/{repo_id}/branch/dev").raise_for_status()
    alice.request("DELETE", "/api/repos/delete", json={"name": "gone"}).raise_for_status()
    upload_large(alice, repo_id, LARGE + b"never committed")

    assert run("gc", own)["blobs"] == 0  # all of it is too young
    before = stored(own)
    everything = ("--older-than", "0s", "--keep-removed", "0s")
    planned = run("gc", own, *everything, "--dry-run")
    assert stored(own) == before
    assert alice.get(f"/api/models/{repo_id}/revision/{dev}").status_code == 200
    done = run("gc", own, *everything)
    assert {**planned, "dry_run": False} == done
    assert (done["repositories"], done["commits"], done["blobs"]) == (1, 1, 3)
    assert done["freed_bytes"] == len(LARGE + b"dev") + len(LARGE + b"never committed") + len(b"only here")
    assert stored(own) == kept
    assert alice.get(f"/api/models/{repo_id}/revision/{dev}").status_code == 404
    assert alice.get(f"/{repo_id}/resolve/main/kept.bin").content == LARGE
    assert run("fsck", own) == []


def test_what_gc_took_must_be_uploaded_again(own: RegistryServer, alice: httpx.Client) -> None:
    repo_id = make(alice, "again")
    oid = upload_large(alice, repo_id, LARGE)
    run("gc", own, "--older-than", "0s")
    assert commit(alice, repo_id, lfs("w.bin", oid)).status_code == 400
    assert upload_large(alice, repo_id, LARGE) == oid
    assert commit(alice, repo_id, lfs("w.bin", oid)).status_code == 200


def test_a_file_that_a_client_was_told_is_here_counts_as_new(
    own: RegistryServer, alice: httpx.Client
) -> None:
    repo_id = make(alice, "told")
    oid = upload_large(alice, repo_id, LARGE)
    path = own.root / "blobs" / oid[:2] / oid[2:]
    os.utime(path, (0, 0))
    assert upload_large(alice, repo_id, LARGE) == oid  # the registry says that it has it
    assert run("gc", own)["blobs"] == 0
    os.utime(path, (0, 0))
    assert run("gc", own)["blobs"] == 1


def test_gc_never_takes_what_a_commit_has(own: RegistryServer, alice: httpx.Client) -> None:
    """Uploads and commits race against a gc that spares the unreachable for a moment only."""
    repo_id = make(alice, "race")
    ended = threading.Event()

    def collect_all() -> int:
        with opened(own.root) as db:
            stores = FileStore(own.root / "blobs"), FileStore(own.root / "xorbs")
            rounds = 0
            while not ended.is_set():
                collect(db, *stores, before="9", before_s=time.time() - 0.05)
                rounds += 1
        return rounds

    def push(number: int) -> None:
        for _ in range(200):
            try:
                oid = upload_large(alice, repo_id, LARGE + str(number).encode())
            except httpx.HTTPStatusError:  # taken between the upload and the question whether it arrived
                continue
            lines = lfs(f"{number}.bin", oid), put(f"{number}.txt", str(number).encode())
            if commit(alice, repo_id, *lines).status_code == 200:
                return
        raise AssertionError("no attempt succeeded")

    with ThreadPoolExecutor(5) as pool:
        collecting = pool.submit(collect_all)
        list(pool.map(push, range(12)))
        ended.set()
        assert collecting.result() > 1
    assert len(alice.get(f"/api/models/{repo_id}/tree/main").json()) == 25
    assert run("fsck", own) == []


def test_xet_clients_go_on_after_gc(own: RegistryServer, tmp_path: Path) -> None:
    """A client that remembers which chunks it sent hears, by the address alone, that they are gone."""
    play("refers_to_chunks_it_sent_before", own, tmp_path)
    assert stored(own, "xorbs")
    done = run("gc", own, "--older-than", "0s")
    assert done["xorbs"] > 0
    assert not stored(own, "xorbs")
    play("refers_to_chunks_it_sent_before", own, tmp_path)
    assert stored(own, "xorbs")
    assert run("fsck", own) == []


def test_fsck_finds_every_kind_of_damage(own: RegistryServer, alice: httpx.Client, tmp_path: Path) -> None:
    repo_id = make(alice, "hurt", {"small": b"small file", "cut": b"this one is cut"})
    oid = upload_large(alice, repo_id, LARGE)
    lost = upload_large(alice, repo_id, LARGE + b"lost")
    commit(alice, repo_id, lfs("w.bin", oid), lfs("lost.bin", lost)).raise_for_status()
    play("refers_to_chunks_it_sent_before", own, tmp_path)
    assert run("fsck", own) == []
    files = {entry["path"]: entry for entry in alice.get(f"/api/models/{repo_id}/tree/main").json()}
    assert files["w.bin"]["lfs"]["oid"] == oid

    def path(digest: str, store: str = "blobs") -> Path:
        return own.root / store / digest[:2] / digest[2:]

    path(oid).write_bytes(LARGE[:-1] + b"?")  # one byte, the same size
    path(lost).unlink()
    cut = hashlib.sha256(b"this one is cut").hexdigest()
    path(cut).write_bytes(b"this one")
    xorb = min(stored(own, "xorbs"))
    path(xorb, "xorbs").write_bytes(path(xorb, "xorbs").read_bytes()[:-10])
    with sqlite3.connect(own.root / "registry.db") as db:
        db.execute("UPDATE commits SET author = 'mallory' WHERE title = 'initial commit'")
    db.close()

    quick = {problem["name"]: problem["fault"] for problem in run("fsck", own, "--quick")}
    assert (lost in quick, cut in quick, oid in quick) == (True, True, False)
    found = {problem["name"]: problem for problem in run("fsck", own)}
    assert found[lost]["fault"] == "it is missing"
    assert found[lost]["used_by"].endswith(":lost.bin")
    assert "bytes, not 15" in found[cut]["fault"]
    assert "its sha256 is" in found[oid]["fault"]
    assert "chunk" in found[xorb]["fault"]
    assert sum(problem["kind"] == "commit" for problem in found.values()) == 2
    failed = hubctl("fsck", "--root", str(own.root))
    assert failed.returncode == 6
    assert "--quarantine" in failed.stderr

    run("fsck", own, "--quarantine")
    assert sorted(p.name for p in (own.root / "damaged").iterdir()) == sorted(
        [f"blob-{oid}", f"blob-{cut}", f"xorb-{xorb}"]
    )
    assert alice.get(f"/{repo_id}/resolve/main/w.bin").status_code == 410
    upload_large(alice, repo_id, LARGE)
    assert alice.get(f"/{repo_id}/resolve/main/w.bin").content == LARGE
    play("refers_to_chunks_it_sent_before", own, tmp_path)


def test_a_backup_is_a_registry(own: RegistryServer, alice: httpx.Client, tmp_path: Path) -> None:
    repo_id = make(alice, "saved", {"x": b"first"}, private=True)
    play("refers_to_chunks_it_sent_before", own, tmp_path)
    target = tmp_path / "copy"
    first = run_backup(own, target)
    assert first["files"] == len(stored(own)) > 0
    commit(alice, repo_id, put("x", b"second")).raise_for_status()
    second = run_backup(own, target)
    assert (second["files"], second["kept_files"]) == (1, first["files"])
    commit(alice, repo_id, put("x", b"too late")).raise_for_status()
    token = alice.headers["authorization"]
    assert (target.stat().st_mode & 0o077, (target / "registry.db").stat().st_mode & 0o077) == (0, 0)
    with RegistryServer(target) as restored:
        address = f"{restored.endpoint}/{repo_id}/resolve/main/x"
        answer = httpx.get(address, headers={"Authorization": token}, trust_env=False)
        assert answer.content == b"second"
        assert hubctl("fsck", "--root", str(target)).returncode == 0
        play("refers_to_chunks_it_sent_before", restored, tmp_path)
        refused = hubctl("backup", str(target), "--root", str(own.root))
        assert (refused.returncode, "another registry serves" in refused.stderr) == (7, True)


def test_a_backup_says_what_is_damaged_and_takes_the_rest(
    own: RegistryServer, alice: httpx.Client, tmp_path: Path
) -> None:
    make(alice, "hurt", {"a": b"aaaa", "b": b"bbbb"})
    digest = hashlib.sha256(b"aaaa").hexdigest()
    (own.root / "blobs" / digest[:2] / digest[2:]).write_bytes(b"AAAA")
    done = hubctl("backup", str(tmp_path / "copy"), "--root", str(own.root))
    assert done.returncode == 6
    assert digest in done.stderr
    assert (tmp_path / "copy" / "registry.db").exists()
    for wrong in (own.root / "inside", own.root.parent):
        assert hubctl("backup", str(wrong), "--root", str(own.root)).returncode == 2
    assert hubctl("fsck", "--root", str(tmp_path / "nothing")).returncode == 3


def run_backup(registry: RegistryServer, target: Path) -> Any:
    done = hubctl("backup", str(target), "--root", str(registry.root), "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
