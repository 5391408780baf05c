"""What one registry allows: requests in a window, bytes of an owner."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils._http import parse_ratelimit_headers

from hubctl.errors import InputError
from hubctl.registry.limits import WINDOW_S, Limits, Verdict, Windows
from tests.registry.test_http import batch, commit, make, put
from tests.registry.test_run import hubctl
from tests.registry_server import RegistryServer


def test_windows() -> None:
    windows = Windows(2)
    start = 7 * WINDOW_S
    taken = [windows.take(who, start + late) for who, late in (("a", 0), ("a", 1.5), ("a", 2), ("b", 2))]
    assert taken == [
        Verdict(allowed=True, remaining=1, reset_s=WINDOW_S),
        Verdict(allowed=True, remaining=0, reset_s=WINDOW_S - 1),
        Verdict(allowed=False, remaining=0, reset_s=WINDOW_S - 2),
        Verdict(allowed=True, remaining=1, reset_s=WINDOW_S - 2),
    ]
    assert windows.take("a", start + WINDOW_S).allowed


def test_limits_that_make_no_sense() -> None:
    for bad in ({"part_bytes": 1}, {"requests": 0}):
        with pytest.raises(InputError):
            Limits(**bad)


def test_too_many_requests(tmp_path: Path) -> None:
    with RegistryServer(tmp_path / "root", "--rate-limit", "5") as registry:
        alice = HfApi(endpoint=registry.endpoint, token=registry.token("alice"))
        bob = HfApi(endpoint=registry.endpoint, token=registry.token("bob"))
        for _ in range(5):
            alice.whoami()
        with pytest.raises(HfHubHTTPError, match="rate limit") as refused:
            alice.whoami()
        answer = refused.value.response
        told = parse_ratelimit_headers(answer.headers)
        assert told is not None
        assert (answer.status_code, told.remaining, told.limit, told.window_seconds) == (429, 0, 5, WINDOW_S)
        assert int(answer.headers["retry-after"]) == told.reset_in_seconds <= WINDOW_S
        assert "too many requests" in answer.headers["x-error-message"]
        assert bob.whoami()["name"] == "bob"
        # Wrong tokens are all one caller: whoever is at this address.
        codes = []
        for number in range(7):
            headers = {"Authorization": f"Bearer guess-{number}"}
            got = httpx.get(f"{registry.endpoint}/api/whoami-v2", headers=headers, trust_env=False)
            codes.append(got.status_code)
        assert codes == [401] * 5 + [429] * 2
        assert httpx.get(f"{registry.endpoint}/healthz", trust_env=False).status_code == 200


def test_a_quota_counts_each_content_once(registry: RegistryServer) -> None:
    root = str(registry.root)
    headers = {"Authorization": f"Bearer {registry.token('quentin')}"}
    with httpx.Client(base_url=registry.endpoint, headers=headers, trust_env=False) as quentin:
        repo_id = make(quentin, "full", {"a": bytes(40_000)})
        assert hubctl("quota", "Quentin", "60kB", "--root", root).returncode == 0
        commit(quentin, repo_id, put("same", bytes(40_000))).raise_for_status()
        refused = commit(quentin, repo_id, put("b", bytes(30_000)))
        assert (refused.status_code, refused.headers["x-error-code"]) == (403, "QuotaExceeded")
        head = quentin.get(f"/api/models/{repo_id}").json()
        assert [file["rfilename"] for file in head["siblings"]] == [".gitattributes", "a", "same"]
        (entry,) = batch(quentin, repo_id, {"oid": "1" * 64, "size": 30_000})
        assert entry["error"]["code"] == 403
        assert "actions" in batch(quentin, repo_id, {"oid": "1" * 64, "size": 10_000})[0]
        listed = json.loads(hubctl("user", "list", "--root", root, "--json").stdout)
        (shown,) = [user for user in listed if user["name"] == "quentin"]
        assert 40_000 < shown["used_bytes"] < 60_000 == shown["quota_bytes"]
        # Over the limit, what adds nothing is still possible.
        assert hubctl("quota", "quentin", "1kB", "--root", root).returncode == 0
        gone = {"key": "deletedFile", "value": {"path": "same"}}
        assert commit(quentin, repo_id, gone).status_code == 200
        assert quentin.get(f"/api/models/{repo_id}/xet-write-token/main").status_code == 403
        assert quentin.post("/api/repos/create", json={"name": "other"}).status_code == 200
        assert hubctl("quota", "quentin", "--root", root).returncode == 0
        assert commit(quentin, repo_id, put("b", bytes(30_000))).status_code == 200


def test_a_quota_holds_for_what_is_given_away(registry: RegistryServer) -> None:
    root = str(registry.root)
    headers = {"Authorization": f"Bearer {registry.token('gina')}"}
    hubctl("org", "add", "small", "--root", root)
    hubctl("org", "join", "small", "gina", "--root", root)
    hubctl("quota", "small", "20kB", "--root", root)
    with httpx.Client(base_url=registry.endpoint, headers=headers, trust_env=False) as gina:
        repo_id = make(gina, "big", {"a": bytes(40_000)})
        move = {"fromRepo": repo_id, "toRepo": "small/big"}
        assert gina.post("/api/repos/move", json=move).status_code == 403
        assert gina.get(f"/api/models/{repo_id}").status_code == 200
