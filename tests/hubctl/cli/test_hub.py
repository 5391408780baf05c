"""push, pull, list, show, remove, inspect, check, login, whoami: as typed, against a real registry."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.adapters import contents, put_nan, write_adapter, write_base
from tests.cli import run_cli

if TYPE_CHECKING:
    from tests.registry_server import RegistryServer

WEIGHTS = "pytorch_lora_weights.safetensors"


class Session(NamedTuple):
    """A user who is logged in, with a base on the registry and an adapter for it on disk."""

    user: str
    token: str
    base: str
    adapter: Path


@pytest.fixture
def session(registry: RegistryServer, tmp_path: Path, request: pytest.FixtureRequest) -> Session:
    user = request.node.name.replace("_", "-")[5:35].strip("-")
    token = registry.token(user)
    added = run_cli("remote", "add", "local", registry.endpoint, "--use", "--token-stdin", stdin=token + "\n")
    assert added.code == 0, added.err
    pushed = run_cli("push", write_base(tmp_path / "base"), "--kind", "base", "-q")
    assert pushed.code == 0, pushed.err
    base = pushed.out.strip()
    return Session(user, token, base, write_adapter(tmp_path / "line-art", base))


def test_the_whole_way(session: Session, tmp_path: Path) -> None:
    pushed = run_cli("push", session.adapter)
    assert pushed.code == 0, pushed.err
    repo = f"{session.user}/line-art"
    assert pushed.out.startswith(f"{repo}@")
    assert f'next: hubctl generate "a prompt" --adapter {repo}' in pushed.err

    again = run_cli("push", session.adapter, "--json").json()
    assert (again["repo"], again["unchanged"]) == (repo, True)
    assert f"{repo}@{again['commit'][:12]} is up to date already" in run_cli("push", session.adapter).out

    (listed,) = run_cli("list", "--author", session.user, "--json").json()
    assert (listed["id"], listed["base"], listed["task"]) == (repo, session.base, "text-to-image")
    assert (listed["commit"], listed["private"]) == (again["commit"], False)
    assert listed["size_bytes"] >= sum(map(len, contents(session.adapter).values()))
    assert repo in run_cli("list", "line-art").out
    assert run_cli("list", "-q", "--base", session.base).out == f"{repo}\n"

    shown = run_cli("show", repo)
    assert "3 layers (3 in unet), rank 2, alpha 2, scale 1" in shown.out
    assert WEIGHTS in shown.out
    facts = run_cli("show", repo, "--json").json()
    assert (facts["commit"], facts["base_model"]) == (again["commit"], session.base)
    assert facts["layout"]["ranks"] == [2]
    assert facts["card"]["license"] == "apache-2.0"

    target = tmp_path / "out"
    pulled = run_cli("pull", f"{repo}@{again['commit']}", "--output", target, "--json").json()
    assert contents(target) == contents(session.adapter)
    weights = next(file for file in facts["files"] if file["path"] == WEIGHTS)
    assert pulled["sha256"] == weights["sha256"]
    taken = run_cli("pull", repo, "--output", target)
    assert taken.code == 7
    assert f"{target} exists already" in taken.err
    assert run_cli("pull", repo, "--output", target, "--overwrite").code == 0

    asked = run_cli("remove", repo)
    assert asked.code == 2
    assert f"next: hubctl remove {repo} --yes" in asked.err
    assert run_cli("remove", repo, "-y").code == 0
    assert run_cli("show", repo).code == 3
    assert run_cli("list", "--author", session.user, "--json").json() == []


def test_refusals_name_the_reason_and_the_way_out(session: Session) -> None:
    put_nan(session.adapter / WEIGHTS)
    ran = run_cli("push", session.adapter)
    assert (ran.code, ran.out) == (5, "")
    assert "Error: 1 of 6 tensors hold NaN or infinity" in ran.err
    assert "  next: training diverged" in ran.err
    fault = json.loads(run_cli("push", session.adapter, "--json").err)
    assert fault["error"]["type"] == "AdapterError"


def test_check_lists_what_does_not_fit(session: Session, tmp_path: Path) -> None:
    assert "fits" in run_cli("check", session.adapter).out
    other = write_base(tmp_path / "other", {"conv_in.weight": (8, 4, 3, 3)})
    ran = run_cli("check", session.adapter, "--base", other)
    assert ran.code == 11
    assert ran.out.count("the base has no layer") == 3
    facts = json.loads(run_cli("check", session.adapter, "--base", other, "--json").out)
    assert (facts["fits"], len(facts["problems"])) == (False, 3)


def test_login_and_whoami(session: Session, registry: RegistryServer, home: Path) -> None:
    assert run_cli("whoami", "-q").out == f"{session.user}\n"
    bob = registry.token("bob-the-second")
    assert run_cli("login", stdin=bob).code == 0, "a pipe needs no flag"
    assert run_cli("whoami", "--json").json()["user"] == "bob-the-second"
    wrong = run_cli("login", "--token-stdin", stdin="hubctl_wrong-wrong-wrong")
    assert wrong.code == 4
    assert "local (" in wrong.err
    assert run_cli("whoami", "-q").out == "bob-the-second\n", "a refused token replaces nothing"
    nobody = run_cli("login")
    assert nobody.code == 2
    assert "--token-stdin" in nobody.err


def test_hf_environment_variables_work_too(
    session: Session, registry: RegistryServer, tmp_path: Path
) -> None:
    home, endpoint, token = str(tmp_path / "fresh"), registry.endpoint, session.token
    asked = run_cli("whoami", "-q", HUBCTL_HOME=home, HF_ENDPOINT=endpoint, HF_TOKEN=token)
    assert asked.out == f"{session.user}\n"
    pushed = run_cli("push", session.adapter, "-q", HUBCTL_HOME=home, HF_ENDPOINT=endpoint, HF_TOKEN=token)
    assert pushed.out == f"{session.user}/line-art\n"


def test_no_token_no_base_no_folder(session: Session, tmp_path: Path) -> None:
    run_cli("remote", "remove", "local")
    ran = run_cli("push", tmp_path / "nowhere")
    assert ran.code == 3
    assert f"Error: no folder {tmp_path / 'nowhere'}" in ran.err


def test_without_a_login(registry: RegistryServer, tmp_path: Path) -> None:
    run_cli("remote", "add", "local", registry.endpoint, "--use")
    base = write_base(tmp_path / "base")
    ran = run_cli("push", write_adapter(tmp_path / "a", str(base)))
    assert ran.code == 4
    assert "Error: no token for local" in ran.err
    assert "  next: hubctl login --remote local" in ran.err


def test_a_dead_registry(tmp_path: Path, home: Path) -> None:
    run_cli("remote", "add", "dead", "http://127.0.0.1:9", "--use")
    base = write_base(tmp_path / "base")
    adapter = write_adapter(tmp_path / "a", str(base))
    for words in (("push", adapter), ("pull", "a/b"), ("list",), ("show", "a/b"), ("whoami",)):
        ran = run_cli(*words, HUBCTL_TOKEN="some-token")
        assert ran.code == 8, ran.err
        assert "cannot reach dead (http://127.0.0.1:9)" in ran.err
    assert not list(home.rglob("*.safetensors"))


def test_a_token_is_never_shown(session: Session, home: Path, tmp_path: Path) -> None:
    words: list[tuple[str | Path, ...]] = [
        ("whoami", "--json"),
        ("remote", "list", "--json"),
        ("push", session.adapter),
        ("push", session.adapter, "--repo", "somebody-else/x"),
        ("show", "no/body"),
        ("--json", "pull", "no/body"),
        ("login", "--token-stdin"),
    ]
    said = [run_cli(*some, stdin=session.token) for some in words]
    said.append(run_cli("whoami", HUBCTL_TOKEN="hubctl_wrong-" + session.token))
    (home / "tokens.toml").write_text(f'[tokens]\n"http://x" = ["{session.token}"]\n')
    said.append(run_cli("whoami"))
    (home / "tokens.toml").write_text(f"[tokens]\nx = {session.token}\n")
    said.append(run_cli("whoami"))
    assert [ran.code for ran in said[-3:]] == [4, 2, 2]
    assert f"next: rm {home / 'tokens.toml'}, then hubctl login" in said[-1].err
    assert not any(session.token in ran.out + ran.err for ran in said)


def test_a_token_as_secrets_are_mounted(session: Session) -> None:
    assert run_cli("whoami", "-q", HUBCTL_TOKEN=session.token + "\n").out == f"{session.user}\n"
    wrong = run_cli("whoami", HUBCTL_TOKEN=session.token + "\nü")
    assert wrong.code == 2
    assert "HUBCTL_TOKEN" in wrong.err
    assert session.token not in wrong.err


def test_a_registry_on_this_machine_is_asked_without_a_proxy(session: Session) -> None:
    nobody = "http://127.0.0.1:1"
    asked = run_cli("whoami", "-q", http_proxy=nobody, HTTPS_PROXY=nobody, ALL_PROXY=nobody)
    assert (asked.code, asked.out) == (0, f"{session.user}\n"), asked.err


@pytest.mark.parametrize(
    ("name", "text"),
    [("ALL_PROXY", "socks5://127.0.0.1:1"), ("http_proxy", "::bad"), ("SSL_CERT_FILE", "/no/such/file")],
)
def test_a_proxy_that_is_none_is_explained(name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, text)
    run_cli("remote", "add", "local", "http://127.0.0.1:9", "--use")
    ran = run_cli("list")
    assert ran.code == 2
    assert "Error: the environment's proxy or certificates cannot be used: " in ran.err
    assert name.upper() in ran.err


def test_inspect(session: Session) -> None:
    ran = run_cli("inspect", session.adapter)
    assert "3 layers (3 in unet), rank 2" in ran.out
    assert "attn2.to_k  2     2      1      2x16  8x2" in ran.out
    facts = run_cli("inspect", session.adapter / WEIGHTS, "--json").json()
    assert facts["layers"][0]["a"] == [2, 8]
