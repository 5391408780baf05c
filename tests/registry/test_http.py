"""The protocol itself: what no stock client sends, and what every answer must carry."""

from __future__ import annotations

import base64
import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.registry_server import RegistryServer

CONTENT = bytes(range(256)) * 40


def make(
    client: httpx.Client, name: str, files: dict[str, bytes] | None = None, *, private: bool = False
) -> str:
    """Create a repository of the client's user holding small `files`; returns its id."""
    answer = client.post("/api/repos/create", json={"name": name, "private": private})
    answer.raise_for_status()
    repo_id: str = answer.json()["name"]
    if files:
        commit(client, repo_id, *(put(path, data) for path, data in files.items())).raise_for_status()
    return repo_id


def put(path: str, data: bytes) -> dict[str, Any]:
    content = base64.b64encode(data).decode()
    return {"key": "file", "value": {"path": path, "content": content, "encoding": "base64"}}


def commit(client: httpx.Client, repo_id: str, *lines: object, parent: str | None = None) -> httpx.Response:
    header = {"key": "header", "value": {"summary": "s", "description": "", "parentCommit": parent}}
    body = "\n".join(json.dumps(line) for line in (header, *lines))
    return client.post(f"/api/models/{repo_id}/commit/main", content=body)


def upload_large(client: httpx.Client, repo_id: str, data: bytes) -> str:
    """Send a large file the plain way; returns its sha256."""
    oid = hashlib.sha256(data).hexdigest()
    entry = batch(client, repo_id, {"oid": oid, "size": len(data)})[0]
    if "actions" in entry:
        httpx.put(entry["actions"]["upload"]["href"], content=data, trust_env=False).raise_for_status()
        verify = entry["actions"]["verify"]["href"]
        client.post(verify, json={"oid": oid, "size": len(data)}).raise_for_status()
    return oid


def batch(client: httpx.Client, repo_id: str, *objects: object) -> list[dict[str, Any]]:
    body = {"operation": "upload", "transfers": ["basic", "xet"], "objects": objects}
    answer = client.post(f"/{repo_id}.git/info/lfs/objects/batch", json=body)
    answer.raise_for_status()
    assert answer.json()["transfer"] == "basic"
    entries: list[dict[str, Any]] = answer.json()["objects"]
    return entries


def test_a_file_and_its_ranges(alice: httpx.Client, nobody: httpx.Client) -> None:
    repo_id = make(alice, "ranges", {"a b.bin": CONTENT, "note.txt": b"hello\n"})
    address = f"/{repo_id}/resolve/main/a%20b.bin"
    head = nobody.head(address)
    assert head.headers["content-length"] == str(len(CONTENT))
    assert head.headers["x-repo-commit"] == alice.get(f"/api/models/{repo_id}").json()["sha"]
    assert head.headers["etag"] == f'"{hashlib.sha1(b"blob 10240" + bytes(1) + CONTENT).hexdigest()}"'
    assert "x-xet-hash" not in head.headers
    assert nobody.get(address).content == CONTENT
    for asked, first, last in (
        ("bytes=0-9", 0, 9),
        ("bytes=10000-", 10000, 10239),
        ("bytes=-5", 10235, 10239),
    ):
        part = nobody.get(address, headers={"Range": asked})
        assert (part.status_code, part.content) == (206, CONTENT[first : last + 1])
        assert part.headers["content-range"] == f"bytes {first}-{last}/10240"
        assert part.headers["etag"] == head.headers["etag"]
    past = nobody.get(address, headers={"Range": "bytes=10240-"})
    assert (past.status_code, past.headers["content-range"]) == (416, "bytes */10240")
    assert "after the end" in past.headers["x-error-message"]
    assert nobody.get(address, headers={"If-None-Match": head.headers["etag"]}).status_code == 304
    assert (
        nobody.get(f"/{repo_id}/resolve/main/note.txt").headers["content-type"] == "text/plain; charset=utf-8"
    )


def test_a_large_file_has_its_sha256_as_etag(alice: httpx.Client) -> None:
    repo_id = make(alice, "etag")
    oid = upload_large(alice, repo_id, CONTENT)
    commit(alice, repo_id, {"key": "lfsFile", "value": {"path": "w.bin", "algo": "sha256", "oid": oid}})
    head = alice.head(f"/{repo_id}/resolve/main/w.bin")
    assert head.headers["etag"] == head.headers["x-linked-etag"] == f'"{oid}"'
    assert head.headers["x-linked-size"] == "10240"


def test_a_damaged_storage_is_said(alice: httpx.Client, registry: RegistryServer) -> None:
    repo_id = make(alice, "damaged", {"x": b"unlike any other"})
    digest = hashlib.sha256(b"unlike any other").hexdigest()
    (registry.root / "blobs" / digest[:2] / digest[2:]).write_bytes(b"cut")
    answer = alice.get(f"/{repo_id}/resolve/main/x")
    assert (answer.status_code, answer.headers["x-error-code"]) == (410, "LostFile")


def test_pages_from_strangers_are_not_shown_as_pages(alice: httpx.Client) -> None:
    repo_id = make(alice, "pages", {"index.html": b"<script>alert(1)</script>", "x.svg": b"<svg/>"})
    for path in ("index.html", "x.svg"):
        headers = alice.get(f"/{repo_id}/resolve/main/{path}").headers
        assert headers["content-type"] == "application/octet-stream"
        assert headers["x-content-type-options"] == "nosniff"
        assert "sandbox" in headers["content-security-policy"]


def test_not_found_says_what(alice: httpx.Client) -> None:
    repo_id = make(alice, "missing")
    sha = alice.get(f"/api/models/{repo_id}").json()["sha"]
    for address, code in (
        (f"/{repo_id}/resolve/main/gone", "EntryNotFound"),
        (f"/{repo_id}/resolve/dev%2Fgone/x", "RevisionNotFound"),
        ("/alice/gone/resolve/main/x", "RepoNotFound"),
        ("/gpt2/resolve/main/x", "RepoNotFound"),
        ("/api/models/gpt2", "RepoNotFound"),
        ("/api/models/alice/gone", "RepoNotFound"),
        (f"/api/models/{repo_id}/tree/main/gone", "EntryNotFound"),
        (f"/api/models/{repo_id}/revision/000000000000", "RevisionNotFound"),
    ):
        answer = alice.get(address)
        assert (answer.status_code, answer.headers["x-error-code"]) == (404, code)
        assert answer.headers["x-error-message"] == answer.json()["error"]
        if code == "EntryNotFound":
            assert answer.headers["x-repo-commit"] == sha


def test_every_answer_has_a_name_of_its_own(alice: httpx.Client) -> None:
    repo_id = make(alice, "named", {"x": b"x"})
    addresses = ("/healthz", f"/{repo_id}/resolve/main/x", f"/{repo_id}/resolve/main/gone", "/nowhere/at/all")
    names = [alice.get(address).headers["x-request-id"] for address in addresses]
    assert len(set(names)) == len(addresses)


@pytest.mark.parametrize("header", ["Bearer wrong", "Bearer hubctl_x\xe9", "Basic !!!", "Digest x", "Bearer"])
def test_a_wrong_token_is_never_anonymous(nobody: httpx.Client, header: str) -> None:
    answer = nobody.get("/api/models", headers=[(b"Authorization", header.encode("latin-1"))])
    assert answer.status_code in (400, 401)
    assert answer.headers["x-error-code"] in ("AccessError", "InputError")


def test_who_may_write(alice: httpx.Client, bob: httpx.Client, nobody: httpx.Client) -> None:
    repo_id = make(alice, "owned")
    for client, status in ((nobody, 401), (bob, 403)):
        assert commit(client, repo_id, put("x", b"x")).status_code == status
        assert client.post(f"/api/models/{repo_id}/branch/b").status_code == status
        assert client.get(f"/api/models/{repo_id}/xet-write-token/main").status_code == status
        assert (
            client.post(
                f"/{repo_id}.git/info/lfs/objects/batch", json={"operation": "upload", "objects": []}
            ).status_code
            == status
        )
        assert client.put(f"/api/models/{repo_id}/settings", json={"private": True}).status_code == status
        gone = client.request("DELETE", "/api/repos/delete", json={"name": repo_id})
        assert gone.status_code == status
    assert bob.post("/api/repos/create", json={"name": "x", "organization": "alice"}).status_code == 403
    moved = bob.post("/api/repos/move", json={"fromRepo": repo_id, "toRepo": "bob/owned"})
    assert moved.status_code == 403


def test_a_private_repository_looks_missing(
    alice: httpx.Client, bob: httpx.Client, nobody: httpx.Client
) -> None:
    repo_id = make(alice, "hidden", {"x": b"x"}, private=True)
    for client in (bob, nobody):
        for address in (
            f"/api/models/{repo_id}",
            f"/api/models/{repo_id}/refs",
            f"/api/models/{repo_id}/tree/main",
            f"/api/models/{repo_id}/commits/main",
            f"/{repo_id}/resolve/main/x",
        ):
            hidden, missing = client.get(address), client.get(address.replace("hidden", "absent"))
            assert hidden.status_code == missing.status_code == 404
            assert hidden.json()["error"].replace("hidden", "absent") == missing.json()["error"]
        assert commit(client, repo_id, put("y", b"y")).status_code == 404
        assert repo_id not in client.get("/api/models").text
    assert repo_id in alice.get("/api/models").text


def test_a_hash_is_no_key_to_somebody_elses_file(alice: httpx.Client, bob: httpx.Client) -> None:
    secret = b"a secret that bob knows only the sha256 of"
    source = make(alice, "vault", private=True)
    oid = upload_large(alice, source, secret)
    commit(alice, source, {"key": "lfsFile", "value": {"path": "s.bin", "algo": "sha256", "oid": oid}})
    target = make(bob, "thief")
    stolen = commit(bob, target, {"key": "lfsFile", "value": {"path": "s.bin", "algo": "sha256", "oid": oid}})
    absent = "0" * 64
    unknown = commit(
        bob, target, {"key": "lfsFile", "value": {"path": "s.bin", "algo": "sha256", "oid": absent}}
    )
    assert stolen.status_code == unknown.status_code == 400
    assert stolen.json()["error"] == unknown.json()["error"].replace(absent, oid)
    assert "actions" in batch(bob, target, {"oid": oid, "size": len(secret)})[0]
    alice.put(f"/api/models/{source}/settings", json={"visibility": "public"}).raise_for_status()
    assert "actions" not in batch(bob, target, {"oid": oid, "size": len(secret)})[0]
    shared = commit(bob, target, {"key": "lfsFile", "value": {"path": "s.bin", "algo": "sha256", "oid": oid}})
    assert shared.status_code == 200


def test_an_upload_link_takes_only_what_it_was_made_for(alice: httpx.Client) -> None:
    repo_id = make(alice, "links")
    data = b"the right bytes"
    oid = hashlib.sha256(data).hexdigest()
    actions = batch(alice, repo_id, {"oid": oid, "size": len(data)})[0]["actions"]
    href = actions["upload"]["href"]
    for wrong in (b"the wrong bytes", data[:-1], data + b"!", b""):
        answer = httpx.put(href, content=wrong, trust_env=False)
        assert (answer.status_code, answer.headers["x-error-code"][-5:]) == (400, "Error")
    forged = href[:-4] + ("0000" if not href.endswith("0000") else "1111")
    assert httpx.put(forged, content=data, trust_env=False).status_code == 403
    assert alice.post(actions["verify"]["href"], json={"oid": oid, "size": len(data)}).status_code == 400
    assert httpx.put(href, content=data, trust_env=False).status_code == 200
    assert alice.post(actions["verify"]["href"], json={"oid": oid, "size": len(data)}).status_code == 200


def test_a_commit_happens_as_a_whole_or_not(alice: httpx.Client) -> None:
    repo_id = make(alice, "atomic", {"a": b"a"})
    before = alice.get(f"/api/models/{repo_id}").json()
    for bad in (
        {"key": "deletedFile", "value": {"path": "gone"}},
        {"key": "deletedFolder", "value": {"path": "a"}},
        put("../x", b""),
        put("A", b"collides"),
        put("a/b", b"file and folder"),
        {"key": "mystery", "value": {"path": "x"}},
        put("README.md", b"---\n: [\n---\n"),
    ):
        answer = commit(alice, repo_id, put("new", b"new"), bad)
        assert answer.status_code in (400, 404), answer.text
    assert alice.get(f"/api/models/{repo_id}").json() == before


def test_the_same_commit_again_is_no_second_commit(alice: httpx.Client) -> None:
    repo_id = make(alice, "again")
    first, second = (commit(alice, repo_id, put("x", b"x")).json()["commitOid"] for _ in range(2))
    assert first == second


def test_of_commits_on_one_parent_one_wins(alice: httpx.Client) -> None:
    repo_id = make(alice, "race")
    parent = alice.get(f"/api/models/{repo_id}").json()["sha"]
    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(
                lambda n: commit(alice, repo_id, put(f"f{n}", b"x"), parent=parent).status_code, range(8)
            )
        )
    assert sorted(answers) == [200] + [412] * 7


def test_commits_without_a_parent_all_happen(alice: httpx.Client) -> None:
    repo_id = make(alice, "queue")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: commit(alice, repo_id, put(f"f{n}", b"x")).raise_for_status(), range(24)))
    assert len(alice.get(f"/api/models/{repo_id}/commits/main").json()) == 25
    assert len(alice.get(f"/api/models/{repo_id}/tree/main").json()) == 25


def test_a_refused_upload_hears_the_reason(nobody: httpx.Client, alice: httpx.Client) -> None:
    """Also when much of it is still to be sent: a broken connection would be tried again."""
    repo_id = make(alice, "refused")
    answer = nobody.post(f"/api/models/{repo_id}/commit/main", content=bytes(30_000_000))
    assert answer.status_code == 401
    assert nobody.get("/healthz").status_code == 200
    answer = alice.post(f"/api/models/{repo_id}/commit/main", content=bytes(30_000_000))
    assert (answer.status_code, "longer than" in answer.json()["error"]) == (400, True)


BAD = "/api/models/alice/bad"
BAD_REQUESTS: list[tuple[str, str, object]] = [
    ("POST", "/api/repos/create", b"not json"),
    ("POST", "/api/repos/create", b"[" * 100_000),
    ("POST", "/api/repos/create", []),
    ("POST", "/api/repos/create", {}),
    ("POST", "/api/repos/create", {"name": 3}),
    ("POST", "/api/repos/create", {"name": "a/b/c"}),
    ("POST", "/api/repos/create", {"name": "../x"}),
    ("POST", "/api/repos/create", b'{"name": "\\ud800"}'),
    ("POST", "/api/repos/create", {"name": "x", "type": "bucket"}),
    ("POST", "/api/repos/create", {"name": "x", "type": ["model"]}),
    ("POST", "/api/repos/create", {"name": "x", "visibility": ["private"]}),
    ("POST", "/api/repos/create", {"name": "x", "private": "yes"}),
    ("POST", "/api/repos/move", {"fromRepo": "alice/bad"}),
    ("POST", "/api/repos/move", {"fromRepo": "alice/bad", "toRepo": "bad"}),
    ("DELETE", "/api/repos/delete", {"name": "gone"}),
    ("POST", "/api/validate-yaml", {"content": None}),
    ("GET", "/api/models?limit=-1", b""),
    ("GET", "/api/models?limit=1e9", b""),
    ("GET", "/api/models?sort=nothing", b""),
    ("GET", "/api/models?cursor=!", b""),
    ("GET", "/api/models?cursor=eHw5OTk5OTk5OTk5OTk5OTk5OTk5OTk5OTk5OTk=", b""),
    ("GET", "/api/models?cursor=%F0%9F%98%80", b""),
    ("GET", f"{BAD}/tree/main?cursor=x", b""),
    ("GET", f"{BAD}/tree/%00", b""),
    ("GET", f"{BAD}/tree/main/%ff%fe", b""),
    ("GET", "/api/models/%00/%ff", b""),
    ("GET", "/alice/bad/resolve/main/..%2f..%2fregistry.db", b""),
    ("GET", "/alice/bad/resolve/main/%2e%2e/%2e%2e/registry.db", b""),
    ("GET", "/nowhere", b""),
    ("PATCH", "/api/models/alice/bad", b""),
    ("POST", f"{BAD}/paths-info/main", {"paths": 3}),
    ("POST", f"{BAD}/paths-info/main", {"paths": [3]}),
    ("POST", f"{BAD}/preupload/main", {"files": 3}),
    ("POST", f"{BAD}/preupload/main", {"files": [3]}),
    ("POST", f"{BAD}/preupload/main", {"files": [{"path": "x", "size": -1}]}),
    ("POST", f"{BAD}/preupload/main", {"files": [{"path": "x", "size": True}]}),
    ("POST", f"{BAD}/preupload/main", {"files": [{"path": "x", "size": 1, "sample": "!"}]}),
    ("POST", f"{BAD}/preupload/main", {"files": [{"path": "../x", "size": 1}]}),
    ("POST", f"{BAD}/commit/main", b""),
    ("POST", f"{BAD}/commit/main", b"{}"),
    ("POST", f"{BAD}/commit/main", b'{"key": "header", "value": {"summary": 3}}'),
    ("POST", f"{BAD}/commit/main", b'{"key": "header", "value": {"summary": "\\udfff"}}'),
    ("POST", f"{BAD}/commit/main", b'{"key": "header", "value": {"summary": "s", "parentCommit": 3}}'),
    ("POST", f"{BAD}/commit/main", b'{"key": "file", "value": {"path": "x", "content": "!", "encoding":""}}'),
    ("POST", f"{BAD}/commit/main", b'{"key": "file", "value": {"path": "x", "content": 3}}'),
    ("POST", f"{BAD}/commit/main", b'{"key": "lfsFile", "value": {"path": "x", "oid": "../../x"}}'),
    ("POST", f"{BAD}/commit/main", b'{"key": "lfsFile", "value": {"path": "x", "oid": null}}'),
    ("POST", f"{BAD}/commit/gone", b'{"key": "header", "value": {"summary": "s"}}'),
    ("POST", f"{BAD}/commit/main?create_pr=1", b'{"key": "header", "value": {"summary": "s"}}'),
    ("POST", f"{BAD}/branch/a..b", b""),
    ("POST", f"{BAD}/branch/main", b""),
    ("POST", f"{BAD}/branch/x", {"startingPoint": "gone"}),
    ("DELETE", f"{BAD}/branch/main", b""),
    ("DELETE", f"{BAD}/tag/gone", b""),
    ("POST", f"{BAD}/tag/main", {"tag": "a b"}),
    ("PUT", f"{BAD}/settings", {"gated": "auto"}),
    ("PUT", f"{BAD}/settings", {"private": "yes"}),
    ("POST", "/alice/bad.git/info/lfs/objects/batch", {"operation": "download", "objects": []}),
    ("POST", "/alice/bad.git/info/lfs/objects/batch", {"operation": "upload", "objects": {}}),
    ("POST", "/alice/bad.git/info/lfs/verify", {"oid": "x", "size": 1}),
    ("PUT", "/lfs/x.y", b""),
    ("PUT", "/lfs/x.y/part/1", b""),
    ("POST", "/lfs/x.y/complete", {"oid": "x", "parts": []}),
    ("POST", f"{BAD}/duplicate", {"repository": "x"}),
    ("GET", "/api/organizations/none/settings/repositories", b""),
    ("POST", f"{BAD}/super-squash/gone", {"message": "x"}),
    ("POST", f"{BAD}/super-squash/main", {"message": 3}),
    ("POST", f"{BAD}/lfs-files/batch", {"deletions": []}),
    ("POST", f"{BAD}/lfs-files/batch", {"deletions": {"sha": ["x"], "rewriteHistory": True}}),
    ("POST", f"{BAD}/lfs-files/batch", {"deletions": {"sha": []}}),
    ("PUT", "/lfs/%ff.%ff", b""),
    ("POST", "/xet/e/alice/v1/xorbs/default/x", b""),
    ("POST", "/xet/e/alice/v1/shards", b""),
]  # fmt: skip


@pytest.mark.parametrize(("method", "address", "body"), BAD_REQUESTS)
def test_bad_requests_are_the_callers_fault(
    alice: httpx.Client, registry: RegistryServer, method: str, address: str, body: object
) -> None:
    alice.post("/api/repos/create", json={"name": "bad"})
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = alice.request(method, address, content=content)
    assert 400 <= answer.status_code < 500, answer.text
    assert answer.headers["x-error-message"]
    assert answer.json()["error"]
    assert str(registry.root) not in answer.text


def test_bad_objects_are_refused_one_by_one(alice: httpx.Client) -> None:
    repo_id = make(alice, "objects")
    good = {"oid": "0" * 64, "size": 1}
    huge = {"oid": "0" * 64, "size": 2**49}
    entries = batch(alice, repo_id, good, {"oid": "../x", "size": 1}, {"oid": "0" * 64}, 3, huge)
    assert ["actions" in entry for entry in entries] == [True, False, False, False, False]
    assert [entry.get("error", {}).get("code") for entry in entries] == [None, 400, 400, 400, 400]
    assert "does not fit" in entries[-1]["error"]["message"]


@pytest.mark.parametrize(
    ("path", "size", "sample", "mode"),
    [
        ("README.md", 100, b"# Title", "regular"),
        ("cut.txt", 513, "ä".encode() * 256 + b"\xc3", "regular"),
        ("latin.txt", 5, b"caf\xe9!", "lfs"),
        ("image.png", 5, b"\x89PNG\r\n", "lfs"),
        ("zero.dat", 1, b"\0", "lfs"),
        ("w.safetensors", 3, b"abc", "lfs"),
        ("deep/w.bin", 3, b"abc", "lfs"),
        ("events.tfevents.1", 3, b"abc", "lfs"),
        ("a.tar.x", 3, b"abc", "lfs"),
        ("big.txt", 10 * 1024 * 1024 + 1, b"abc", "lfs"),
        ("big.txt", 10 * 1024 * 1024, b"abc", "regular"),
    ],
)
def test_which_files_are_large(alice: httpx.Client, path: str, size: int, sample: bytes, mode: str) -> None:
    alice.post("/api/repos/create", json={"name": "modes"})
    entry = {"path": path, "size": size, "sample": base64.b64encode(sample).decode()}
    answer = alice.post("/api/models/alice/modes/preupload/main", json={"files": [entry]})
    assert answer.json() == {"files": [{"path": path, "uploadMode": mode, "shouldIgnore": False}]}


def test_commits_come_page_by_page(alice: httpx.Client) -> None:
    repo_id = make(alice, "log", {"a": b"1"})
    for number in range(4):
        commit(alice, repo_id, put("a", str(number).encode())).raise_for_status()
    whole = [entry["id"] for entry in alice.get(f"/api/models/{repo_id}/commits/main").json()]
    assert len(whole) == 6
    for limit in (0, 2, 5):
        url: str | None = f"/api/models/{repo_id}/commits/main?limit={limit}"
        found = []
        while url:
            answer = alice.get(url)
            found += [entry["id"] for entry in answer.json()]
            url = answer.links.get("next", {}).get("url")
        assert found == whole


def test_listing_goes_on_where_it_stopped(alice: httpx.Client) -> None:
    for number in range(5):
        make(alice, f"listed-{number}")
    url: str | None = "/api/models?search=listed&limit=2&sort=createdAt"
    pages = []
    while url:
        answer = alice.get(url)
        pages.append([model["id"] for model in answer.json()])
        url = answer.links.get("next", {}).get("url")
        make(alice, f"listed-late-{len(pages)}")
    assert [len(page) for page in pages] == [2, 2, 1]
    assert [name for page in pages for name in page] == [
        f"alice/listed-{number}" for number in (4, 3, 2, 1, 0)
    ]
