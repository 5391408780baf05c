"""The write side of Xet from below: what a client that lies gets to hear, and that nothing of it stays."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import httpx
import pytest

from tests.registry import xet_builder
from tests.registry.test_http import batch, make
from tests.registry_server import RegistryServer

CONTENT = random.Random(3).randbytes(150_000) + bytes(100_000)


def storage(client: httpx.Client, repo_id: str) -> httpx.Client:
    """A client of the storage address that the registry names for uploads to `repo_id`."""
    answer = client.get(f"/api/models/{repo_id}/xet-write-token/main")
    answer.raise_for_status()
    told = answer.json()
    assert answer.headers["x-xet-cas-url"] == told["casUrl"]
    assert int(answer.headers["x-xet-token-expiration"]) == told["exp"]
    headers = {"Authorization": f"Bearer {told['accessToken']}"}
    return httpx.Client(base_url=told["casUrl"], headers=headers, trust_env=False)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_file_is_put_together(alice: httpx.Client, version: str) -> None:
    repo_id = make(alice, f"whole-{version}")
    content = CONTENT + version.encode()
    name, xorb, shard = xet_builder.one_file(content)
    with storage(alice, repo_id) as cas:
        assert cas.post(f"/v1/xorbs/default/{name}", content=xorb).json() == {"was_inserted": True}
        assert cas.post(f"/v1/xorbs/default/{name}", content=xorb).json() == {"was_inserted": False}
        answer = cas.post(f"/{version}/shards", content=shard)
    assert answer.json()["result"] == 1
    oid = hashlib.sha256(content).hexdigest()
    assert "actions" not in batch(alice, repo_id, {"oid": oid, "size": len(content)})[0]


def test_terms_may_reorder_and_repeat(alice: httpx.Client, registry: RegistryServer) -> None:
    repo_id = make(alice, "terms")
    pieces = [b"a" * 10, b"b" * 20, b"c" * 30]
    name, xorb = xet_builder.xorb(pieces, scheme=2)
    content = pieces[1] + pieces[2] + pieces[0] + pieces[1]
    oid = hashlib.sha256(content).hexdigest()
    shard = xet_builder.shard([(oid, [(name, 50, 1, 3), (name, 30, 0, 2)])])
    with storage(alice, repo_id) as cas:
        cas.post(f"/v1/xorbs/default/{name}", content=xorb).raise_for_status()
        cas.post("/v2/shards", content=shard).raise_for_status()
    assert (registry.root / "blobs" / oid[:2] / oid[2:]).read_bytes() == content


def test_lies_leave_nothing(alice: httpx.Client, registry: RegistryServer) -> None:
    repo_id = make(alice, "lies")
    name, xorb, shard = xet_builder.one_file(CONTENT + b"lies")
    other, _, _ = xet_builder.one_file(CONTENT + b"truth")
    with storage(alice, repo_id) as cas:
        before = _files(registry.root)
        for path, body, reason in (
            (f"/v1/xorbs/default/{other}", xorb, "has the hash"),
            (f"/v1/xorbs/default/{name}", xorb[:-1], "ends within"),
            (f"/v1/xorbs/default/{name}", b"", "empty"),
            ("/v1/xorbs/default/..%2f..%2fx", xorb, "not a digest"),
            ("/v1/shards", shard[:100], "ends before"),
        ):
            answer = cas.post(path, content=body)
            assert (answer.status_code, reason in answer.json()["error"]) == (400, True), answer.text
        assert _files(registry.root) == before
        cas.post(f"/v1/xorbs/default/{name}", content=xorb).raise_for_status()
        before = _files(registry.root)
        size, chunks = len(CONTENT) + 4, 4
        wrong = hashlib.sha256(b"something else").hexdigest()
        for terms, reason in (
            ([(name, size, 0, chunks)], "promised sha256"),
            ([(name, size, 0, chunks + 1)], "has 4 chunks, not 5"),
            ([(name, size - 1, 0, chunks)], "another size"),
            ([(name, 2**32 - 1, 0, chunks)] * 50_000, "does not fit"),
        ):
            answer = cas.post("/v1/shards", content=xet_builder.shard([(wrong, terms)]))
            assert (answer.status_code, reason in answer.json()["error"]) == (400, True), answer.text
        assert _files(registry.root) == before


def test_nobody_refers_to_what_another_sent(alice: httpx.Client, bob: httpx.Client) -> None:
    name, xorb, shard = xet_builder.one_file(CONTENT + b"of alice")
    with storage(alice, make(alice, "mine")) as cas:
        cas.post(f"/v1/xorbs/default/{name}", content=xorb).raise_for_status()
    with storage(bob, make(bob, "theirs")) as cas:
        event = cas.post("/v2/shards", content=shard).json()
        assert (event["type"], "start the upload again" in event["message"]) == ("error", True)
        assert event["retryable"] is False
        assert "out of date" in cas.post("/v2/shards", content=shard).json()["error"]
    with storage(bob, "bob/theirs") as cas:
        assert cas.post(f"/v1/xorbs/default/{name}", content=xorb).json() == {"was_inserted": False}
        cas.post("/v2/shards", content=shard).raise_for_status()


def test_the_address_belongs_to_its_user(
    alice: httpx.Client, bob: httpx.Client, nobody: httpx.Client
) -> None:
    with storage(alice, make(alice, "address")) as cas:
        url, token = str(cas.base_url).rstrip("/"), cas.headers["Authorization"]
    shards = f"{url}/v2/shards"
    assert nobody.post(shards).status_code == 401
    assert alice.post(shards).status_code == 403  # a Hub token is no storage token
    assert nobody.post(shards.replace("alice", "bob"), headers={"Authorization": token}).status_code == 403
    stale = nobody.post(
        url.rpartition("/xet/")[0] + "/xet/old/alice/v2/shards", headers={"Authorization": token}
    )
    assert (stale.status_code, "start the upload again" in stale.json()["error"]) == (400, True)
    assert bob.get("/api/models/alice/address/xet-write-token/main").status_code == 403


def _files(root: Path) -> set[Path]:
    return {path for folder in ("blobs", "xorbs") for path in (root / folder).rglob("*") if path.is_file()}
