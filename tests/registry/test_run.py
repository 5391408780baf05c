"""Starting and stopping, and the commands that do it."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from hubctl.errors import AccessError, InputError
from hubctl.registry.auth import Signer, bearer_token, create_token
from tests.registry.test_http import batch, commit, make, put
from tests.registry_server import RegistryServer


def hubctl(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hubctl", "registry", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30)


def test_a_token_is_printed_alone_and_works(tmp_path: Path) -> None:
    first = hubctl("token", "create", "--root", str(tmp_path), "--user", "alice")
    assert (first.returncode, first.stdout.count("\n")) == (0, 1)
    with RegistryServer(tmp_path) as registry:
        second = hubctl("token", "create", "--root", str(tmp_path), "--user", "Alice")
        for made in (first, second):
            headers = {"Authorization": f"Bearer {made.stdout.strip()}"}
            answer = httpx.get(f"{registry.endpoint}/api/whoami-v2", headers=headers, trust_env=False)
            assert answer.json()["name"] == "alice"  # names differ by more than case
    assert first.stdout.strip().encode() not in (tmp_path / "registry.db").read_bytes()


def test_json_of_a_new_token(tmp_path: Path) -> None:
    done = hubctl("token", "create", "--root", str(tmp_path), "--user", "alice", "--json")
    answer = json.loads(done.stdout)
    assert (answer["user"], answer["token"].startswith("hf_hubctl_")) == ("alice", True)


def test_a_name_that_cannot_be_is_refused(tmp_path: Path) -> None:
    done = hubctl("token", "create", "--root", str(tmp_path / "new"), "--user", "a/b")
    assert (done.returncode, done.stdout) == (2, "")
    assert "user name 'a/b' is not allowed" in done.stderr
    assert not (tmp_path / "new").exists()


def test_a_port_in_use_is_said(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = hubctl("serve", "--root", str(tmp_path), "--port", port)
    assert done.returncode == 7
    assert f"cannot listen on 127.0.0.1 port {port}" in done.stderr
    assert "--port" in done.stderr


def test_one_folder_has_one_server(tmp_path: Path) -> None:
    with RegistryServer(tmp_path):
        done = hubctl("serve", "--root", str(tmp_path), "--port", "0")
    assert done.returncode == 7
    assert "another registry serves" in done.stderr


def test_a_root_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = hubctl("serve", "--root", str(tmp_path / "file" / "below"), "--port", "0")
    assert done.returncode == 2
    assert "cannot hold a registry" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    server = RegistryServer(tmp_path)
    with server:
        assert httpx.get(f"{server.endpoint}/healthz", trust_env=False).status_code == 200
        server.signal(number)
        assert server.stop() == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.endpoint}/healthz", trust_env=False)


def test_everything_is_there_after_a_kill(tmp_path: Path) -> None:
    with RegistryServer(tmp_path) as registry:
        token = registry.token("alice")
        with httpx.Client(base_url=registry.endpoint, headers={"Authorization": f"Bearer {token}"}) as client:
            repo_id = make(client, "kept", {"x.txt": b"kept"})
        registry.signal(signal.SIGKILL)
    (tmp_path / "blobs" / "drafts" / "left-over").write_bytes(b"half")
    with RegistryServer(tmp_path) as registry:
        answer = httpx.get(f"{registry.endpoint}/{repo_id}/resolve/main/x.txt", trust_env=False)
        assert answer.content == b"kept"
        assert not list((tmp_path / "blobs" / "drafts").iterdir())


def test_a_full_disk_is_said_and_survived(tmp_path: Path) -> None:
    with RegistryServer(tmp_path) as registry:
        headers = {"Authorization": f"Bearer {registry.token('alice')}"}
        with httpx.Client(base_url=registry.endpoint, headers=headers, trust_env=False) as alice:
            repo_id = make(alice, "full", {"x.txt": b"kept"})
            size = 40_000_000
            (entry,) = batch(alice, repo_id, {"oid": "0" * 64, "size": size})
            registry.limit_files(16_000_000)
            answer = httpx.put(entry["actions"]["upload"]["href"], content=bytes(size), trust_env=False)
            assert (answer.status_code, answer.headers["x-error-code"]) == (413, "StorageFull")
            assert commit(alice, repo_id, put("y.txt", b"small")).status_code == 200
        assert not list((tmp_path / "blobs" / "drafts").iterdir())


def test_others_on_the_machine_see_nothing(tmp_path: Path) -> None:
    root = tmp_path / "root"
    create_token(root, "alice")
    assert root.stat().st_mode & 0o077 == 0
    assert (root / "registry.db").stat().st_mode & 0o077 == 0


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "registry.db").write_bytes(b"no database at all" * 100)
    with pytest.raises(InputError, match="cannot be opened as a registry's database"):
        create_token(tmp_path, "alice")


def test_a_database_of_another_time_is_refused(tmp_path: Path) -> None:
    import sqlite3

    create_token(tmp_path, "alice")
    with sqlite3.connect(tmp_path / "registry.db") as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(InputError, match="has schema 99"):
        create_token(tmp_path, "alice")


def test_signed_texts() -> None:
    signer = Signer(b"secret")
    text = signer.sign("upload", lifetime_s=60, oid="x")
    assert signer.check("upload", text)["oid"] == "x"
    for forged in ("", ".", text[:-1], text + "0", "a" + text, "\ud800." + text, text.replace(".", "")):
        with pytest.raises(AccessError, match="not signed"):
            signer.check("upload", forged)
    with pytest.raises(AccessError, match="not for download"):
        signer.check("download", text)
    with pytest.raises(AccessError, match="expired"):
        signer.check("upload", signer.sign("upload", lifetime_s=-1))
    with pytest.raises(AccessError, match="not signed"):
        Signer(b"another").check("upload", text)


@pytest.mark.parametrize(
    ("header", "token"),
    [(None, None), ("", None), ("Bearer x", "x"), ("bearer  x ", "x"), ("Basic YWxpY2U6eA==", "x")],
)
def test_authorization_headers(header: str | None, token: str | None) -> None:
    assert bearer_token(header) == token
