"""Uploads in parts, from below: what arrives late, twice, wrong or not at all."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubctl.registry.multipart import MAX_PARTS, part_sizes, size_of_parts
from tests.registry.test_http import make
from tests.registry_server import RegistryServer

PART = 64 * 1024
DATA = random.Random(5).randbytes(2 * PART + 1000)
OID = hashlib.sha256(DATA).hexdigest()


@given(st.integers(1, 2**50), st.integers(1, 2**32))
def test_parts_add_up_and_are_not_too_many(size: int, asked: int) -> None:
    part = size_of_parts(size, asked)
    assert part >= asked
    if size // part < 2**14:
        sizes = part_sizes(size, part)
        assert sum(sizes) == size
        assert len(sizes) == -(-size // part) <= MAX_PARTS
        assert all(one == part for one in sizes[:-1])


@pytest.fixture
def small_parts(tmp_path: Path) -> Iterator[RegistryServer]:
    with RegistryServer(tmp_path / "root", "--part-size", str(PART)) as server:
        yield server


def ask(client: httpx.Client, repo_id: str, transfers: list[str]) -> dict[str, Any]:
    body = {"operation": "upload", "transfers": transfers, "objects": [{"oid": OID, "size": len(DATA)}]}
    answer = client.post(f"/{repo_id}.git/info/lfs/objects/batch", json=body)
    answer.raise_for_status()
    told: dict[str, Any] = answer.json()
    return told


def test_parts_from_below(small_parts: RegistryServer) -> None:
    headers = {"Authorization": f"Bearer {small_parts.token('alice')}"}
    with httpx.Client(base_url=small_parts.endpoint, headers=headers, trust_env=False) as alice:
        repo_id = make(alice, "parts")
        assert ask(alice, repo_id, ["basic"])["transfer"] == "basic"
        told = ask(alice, repo_id, ["basic", "multipart"])
        assert told["transfer"] == "multipart"
    upload = told["objects"][0]["actions"]["upload"]
    assert sorted(upload["header"]) == ["00001", "00002", "00003", "chunk_size"]
    pieces = [DATA[start : start + PART] for start in range(0, len(DATA), PART)]
    etags = []
    finish = {"oid": OID, "parts": [{"partNumber": n, "etag": "x"} for n in (1, 2, 3)]}

    def end(body: object = finish) -> tuple[int, str]:
        answer = httpx.post(upload["href"], json=body, trust_env=False)
        return answer.status_code, answer.json().get("error", "")

    for number, piece in enumerate(pieces, 1):
        assert end() == (400, f"part {number} of {OID} has not arrived")
        address = upload["header"][f"{number:05d}"]
        for wrong in (piece[:-1], piece + b"!"):
            assert httpx.put(address, content=wrong, trust_env=False).status_code == 400
        httpx.put(address, content=bytes(len(piece)), trust_env=False).raise_for_status()
        answer = httpx.put(address, content=piece, trust_env=False)  # the later one counts
        etags.append(answer.headers["etag"])
    assert len(set(etags)) == 3
    assert end({"oid": "0" * 64, "parts": []})[0] == 400
    assert end({"oid": OID, "parts": [1]})[0] == 400
    last = upload["header"]["00003"]
    httpx.put(last, content=bytes(len(pieces[2])), trust_env=False).raise_for_status()
    assert "promised sha256" in end()[1]
    httpx.put(last, content=pieces[2], trust_env=False).raise_for_status()
    assert end() == end() == (200, "")  # a repeated request is answered the same
    assert (small_parts.root / "blobs" / OID[:2] / OID[2:]).read_bytes() == DATA
    beyond = last.replace("/part/3", "/part/4")
    assert httpx.put(beyond, content=b"", trust_env=False).status_code == 400
