"""logout: as typed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.registry_server import RegistryServer

from tests.cli import run_cli


def test_the_token_is_gone_and_the_remote_stays(registry: RegistryServer, home: Path) -> None:
    token = registry.token("leaver")
    run_cli("remote", "add", "local", registry.endpoint, "--use", "--token-stdin", stdin=token + "\n")
    assert run_cli("whoami", "-q").out == "leaver\n"
    left = run_cli("logout")
    assert "logged out of local" in left.out
    assert token not in (home / "tokens.toml").read_text()
    assert run_cli("whoami").code == 4
    assert run_cli("logout", "--json").json() == {
        "remote": "local", "url": registry.endpoint, "stored": False,
    }  # fmt: skip


def test_another_token_that_is_still_used_is_said(registry: RegistryServer) -> None:
    env = {"HUBCTL_TOKEN": registry.token("stayer")}
    run_cli("remote", "add", "local", registry.endpoint, "--use")
    assert "is still used" in run_cli("logout", cwd=None, **env).err
