"""remote add, use, list, remove: as typed."""

from __future__ import annotations

from tests.cli import run_cli

URL = "http://127.0.0.1:9"


def test_add_list_use_remove() -> None:
    added = run_cli("remote", "add", "local", URL)
    assert added.out == f"remote local is {URL}\n"
    assert "  next: hubctl login --remote local" in added.err
    assert run_cli("remote", "use", "local").out == f"now using local ({URL})\n"
    rows = run_cli("remote", "list", "--json").json()
    assert rows == [
        {"name": "hf", "url": "https://huggingface.co", "current": False, "logged_in": False},
        {"name": "local", "url": URL, "current": True, "logged_in": False},
    ]
    assert run_cli("remote", "list", "-q").out == "hf\nlocal\n"
    assert run_cli("remote", "remove", "local").code == 0
    assert run_cli("remote", "list", "--json").json()[0]["current"]


def test_adding_with_a_token_asks_the_registry_first() -> None:
    ran = run_cli("remote", "add", "local", URL, "--token-stdin", stdin="some-token")
    assert ran.code == 8
    assert run_cli("remote", "list", "-q").out == "hf\n", "nothing half-added"


def test_an_unencrypted_registry_elsewhere_is_warned_about() -> None:
    ran = run_cli("remote", "add", "lan", "http://10.1.2.3:8000")
    assert ran.code == 0
    assert "Warning: http://10.1.2.3:8000 is not encrypted" in ran.err
    assert "Warning" not in run_cli("remote", "add", "local", URL).err


def test_an_environment_that_wins_is_mentioned() -> None:
    run_cli("remote", "add", "local", URL)
    assert "HF_ENDPOINT is set" in run_cli("remote", "use", "local", HF_ENDPOINT="http://127.0.0.1:1").err
