"""`hubctl serve --locked`: what hub.lock holds is served at its commit, whatever the registry says by now."""

from __future__ import annotations

from pathlib import Path

from tests.adapters import write_adapter, write_base
from tests.cli import run_cli
from tests.e2e.server import serving
from tests.registry_server import RegistryServer

GENERATIONS = "/v1/images/generations"


def test_nothing_but_the_locked_commits_is_served(registry: RegistryServer, tmp_path: Path) -> None:
    token = registry.token("lock-server")
    run_cli("remote", "add", "local", registry.endpoint, "--use", "--token-stdin", stdin=token + "\n")
    base = run_cli("push", write_base(tmp_path / "tiny"), "--kind", "base", "-q").out.strip()
    for name in ("inside", "outside"):
        run_cli("push", write_adapter(tmp_path / name, base))
    locked = run_cli("lock", "lock-server/inside", "--json", cwd=tmp_path).json()[0]["commit"]
    write_adapter(tmp_path / "inside", base, seed=9)
    moved = run_cli("push", tmp_path / "inside", "--json").json()["commit"]
    assert moved != locked
    run_cli("push", write_base(tmp_path / "tiny", {"conv_in.weight": (8, 4, 3, 3)}), "--kind", "base")

    words = ["--base", base, "--engine", "echo", "--port", "0", "--locked"]
    with serving(words, tmp_path / "log", cwd=tmp_path) as server:
        body = {"prompt": "red apple", "seed": 1}
        code, answer = server.post(GENERATIONS, body | {"model": "lock-server/inside"})
        assert code == 200, answer
        assert [used["revision"] for used in answer["hubctl"]["adapters"]] == [locked]
        assert answer["hubctl"]["base"] == base, (
            "the base has moved too: only its locked commit has the layers"
        )

        code, answer = server.post(GENERATIONS, body | {"model": "lock-server/outside"})
        assert (code, "not in hub.lock" in answer["error"]["message"]) == (404, True)
        code, answer = server.post(GENERATIONS, body | {"model": f"lock-server/inside@{moved}"})
        assert code == 409
        assert locked[:12] in answer["error"]["message"]
