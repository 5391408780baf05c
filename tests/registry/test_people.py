"""Users, organisations and tokens, as the command line makes them and the stock client meets them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from hubctl.errors import AccessError, ConflictError, InputError, NotFoundError
from hubctl.registry.accounts import Accounts
from hubctl.registry.auth import create_token, opened
from hubctl.registry.database import Database
from hubctl.registry.uploads import Uploads
from tests.registry.test_run import hubctl
from tests.registry_server import RegistryServer


@pytest.fixture
def accounts(tmp_path: Path) -> Iterator[Accounts]:
    with opened(tmp_path / "root") as db:
        yield Accounts(db)


def test_a_reader_reads_and_no_more(registry: RegistryServer, alice: httpx.Client) -> None:
    alice.post("/api/repos/create", json={"name": "scoped", "private": True}).raise_for_status()
    made = hubctl("token", "create", "--root", str(registry.root), "--user", "alice",
                  "--scope", "read", "--expires", "1h", "--label", "server", "--json")  # fmt: skip
    token = json.loads(made.stdout)["token"]
    api = HfApi(endpoint=registry.endpoint, token=token)
    assert api.whoami()["auth"]["accessToken"] == {"displayName": "server", "role": "read"}
    assert api.model_info("alice/scoped").private
    for write in (
        lambda: api.create_repo("other"),
        lambda: api.delete_repo("alice/scoped"),
        lambda: api.move_repo("alice/scoped", "alice/moved"),
        lambda: api.create_tag("alice/scoped", tag="v1"),
        lambda: api.upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id="alice/scoped"),
        lambda: api.update_repo_settings("alice/scoped", private=False),
        lambda: api.auth_check("alice/scoped", write=True),
        lambda: list(api.list_lfs_files("alice/scoped")),
    ):
        with pytest.raises(HfHubHTTPError) as refused:
            write()
        assert refused.value.response.status_code == 403
        assert "may only read" in refused.value.response.headers["x-error-message"]
    batch = httpx.post(
        f"{registry.endpoint}/alice/scoped.git/info/lfs/objects/batch",
        json={"operation": "upload", "objects": []},
        headers={"Authorization": f"Bearer {token}"},
        trust_env=False,
    )
    assert batch.status_code == 403


def test_a_revoked_or_expired_token_is_worthless(registry: RegistryServer) -> None:
    token = create_token(registry.root, "dave")
    api = HfApi(endpoint=registry.endpoint, token=token)
    assert api.whoami()["name"] == "dave"
    listed = hubctl("token", "list", "--root", str(registry.root), "--user", "Dave", "--json")
    (entry,) = json.loads(listed.stdout)
    assert token not in listed.stdout
    assert hubctl("token", "revoke", entry["id"], "--root", str(registry.root)).returncode == 0
    assert hubctl("token", "revoke", entry["id"], "--root", str(registry.root)).returncode == 3
    expired = create_token(registry.root, "dave", expires_s=5)
    with opened(registry.root) as db, db.write() as connection:
        connection.execute("UPDATE tokens SET expires_at = '2020-01-01T00:00:00.000Z' WHERE user = 'dave'")
    for worthless in (token, expired):
        with pytest.raises(HfHubHTTPError) as refused:
            HfApi(endpoint=registry.endpoint, token=worthless).whoami()
        assert refused.value.response.status_code == 401
    assert "2020-01-01" in refused.value.response.json()["hint"]


@pytest.mark.parametrize(("days", "warned"), [(None, False), (30, False), (6, True)])
def test_a_token_warns_before_it_expires(registry: RegistryServer, days: int | None, warned: bool) -> None:
    token = create_token(registry.root, "wanda", expires_s=days and days * 86400)
    headers = {"Authorization": f"Bearer {token}"}
    answer = httpx.get(f"{registry.endpoint}/api/whoami-v2", headers=headers, trust_env=False)
    assert ("expires at" in answer.headers.get("x-hf-warning", "")) is warned


def test_people_of_an_organisation_share_its_repositories(registry: RegistryServer) -> None:
    root = str(registry.root)
    names = {
        name: HfApi(endpoint=registry.endpoint, token=registry.token(name)) for name in ("olga", "oscar")
    }
    olga, oscar = names["olga"], names["oscar"]
    stranger = HfApi(endpoint=registry.endpoint, token=registry.token("otto"))
    assert hubctl("org", "add", "Studio", "--root", root).returncode == 0
    assert hubctl("org", "join", "studio", "olga", "--root", root).returncode == 0
    assert hubctl("org", "join", "studio", "oscar", "--role", "read", "--root", root).returncode == 0
    assert [org["name"] for org in olga.whoami()["orgs"]] == ["Studio"]
    assert olga.create_repo("studio/style", private=True).repo_id == "Studio/style"
    olga.upload_file(path_or_fileobj=bytes(20_000), path_in_repo="w.bin", repo_id="studio/style")
    assert oscar.model_info("Studio/style").private
    assert [model.id for model in oscar.list_models(author="studio")] == ["Studio/style"]
    assert not list(stranger.list_models(author="studio"))
    for api, expected in ((oscar, 403), (stranger, 404)):
        with pytest.raises(HfHubHTTPError) as refused:
            api.delete_file("w.bin", "studio/style")
        assert refused.value.response.status_code == expected
    with pytest.raises(HfHubHTTPError):
        oscar.create_repo("studio/more")
    olga.create_repo("mine")
    olga.move_repo("olga/mine", "studio/ours")
    assert oscar.repo_exists("studio/ours")
    with pytest.raises(HfHubHTTPError):
        oscar.move_repo("studio/ours", "oscar/ours")
    assert hubctl("org", "leave", "studio", "oscar", "--root", root).returncode == 0
    with pytest.raises(RepositoryNotFoundError):
        oscar.model_info("Studio/style")
    assert hubctl("org", "remove", "studio", "--root", root).returncode == 7
    assert {repo.id for repo in olga.list_user_repos("studio")} == {"Studio/style", "Studio/ours"}
    (listed,) = json.loads(hubctl("org", "list", "--root", root, "--json").stdout)
    assert (listed["repos"], listed["members"]) == (2, {"olga": "write"})


def test_a_name_is_taken_once(accounts: Accounts) -> None:
    accounts.add("alice")
    accounts.add("studio", is_org=True)
    for name in ("Alice", "STUDIO"):
        with pytest.raises(ConflictError, match="already"):
            accounts.add(name)
    with pytest.raises(InputError, match="organisation"):
        accounts.create_token("studio")
    with pytest.raises(InputError):
        accounts.set_member("alice", "studio", "read")
    with pytest.raises(NotFoundError):
        accounts.set_member("studio", "nobody", "read")
    with pytest.raises(NotFoundError, match="not in"):
        accounts.set_member("studio", "alice", None)
    for options in ({"label": ""}, {"label": "a\nb"}, {"expires_s": -1}, {"expires_s": 10**12}):
        with pytest.raises(InputError):
            accounts.create_token("alice", **options)


def test_what_is_only_looked_at_is_not_made(tmp_path: Path) -> None:
    for command in (
        ("user", "list"),
        ("org", "list"),
        ("token", "list"),
        ("quota", "alice"),
        ("fsck",),
        ("gc",),
    ):
        assert hubctl(*command, "--root", str(tmp_path / "none")).returncode == 3
    assert not (tmp_path / "none").exists()
    assert hubctl("user", "add", "alice", "--root", str(tmp_path / "new")).returncode == 0


def test_a_removed_user_is_gone_with_everything_that_was_given_out(tmp_path: Path) -> None:
    with opened(tmp_path) as db:
        accounts, uploads = Accounts(db), Uploads(db)
        token = accounts.create_token("eve")
        accounts.add("studio", is_org=True)
        accounts.set_member("studio", "eve", "write")
        uploads.record_held("eve", "blob", "0" * 64)
        accounts.remove("Eve")
        with pytest.raises(AccessError):
            accounts.caller(token)
        for late in (lambda: uploads.record_held("eve", "blob", "0" * 64), lambda: uploads.xet_epoch("eve")):
            with pytest.raises(AccessError, match="no user eve"):
                late()
        with pytest.raises(NotFoundError):
            accounts.remove("eve")


@pytest.mark.parametrize(("span", "fine"), [("30d", True), ("1.5h", True), ("30", False), ("x", False)])
def test_time_spans(tmp_path: Path, span: str, fine: bool) -> None:
    done = hubctl("token", "create", "--root", str(tmp_path), "--user", "alice", "--expires", span)
    assert (done.returncode == 0) is fine
    assert fine or "write it like 30d" in done.stderr


def test_a_database_of_the_first_version_is_brought_up_to_date(tmp_path: Path) -> None:
    """The tables of an old registry, brought forward, are those of a new one."""
    first = (Path(__file__).parent / "schema_1.sql").read_text()
    with sqlite3.connect(tmp_path / "old.db") as old:
        old.executescript(first + "PRAGMA user_version = 1;")
        old.execute("INSERT INTO users VALUES ('alice', '2026', 'e')")
        old.execute("INSERT INTO tokens VALUES ('d', 'alice', '2026')")
    old.close()

    def columns(path: Path) -> set[tuple[object, ...]]:
        database = Database(path)
        with database.read() as db:
            schema = db.execute("SELECT name, type FROM sqlite_schema").fetchall()
            tables = [row["name"] for row in schema if row["type"] != "index"]
            found: set[tuple[object, ...]] = {tuple(row) for row in schema}
            for table in tables:
                found |= {(table, *row[1:5]) for row in db.execute(f"PRAGMA table_xinfo({table})")}
        database.close()
        return found

    assert columns(tmp_path / "old.db") == columns(tmp_path / "new.db")
    database = Database(tmp_path / "old.db")
    assert [token["scope"] for token in Accounts(database).tokens()] == ["write"]
    assert Accounts(database).orgs_of("alice") == []
    database.close()
