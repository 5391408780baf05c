from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from hubctl.cli.doctor import SHELLS
from hubctl.cli.main import cli

TOKEN = "hub_this-is-secret"


def run(*args: str, **environment: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli, args, env=environment, catch_exceptions=False)
    return result.exit_code, result.stdout


def test_doctor_tells_what_is_missing_and_how_to_get_it(tmp_path: Path) -> None:
    code, text = run(
        "doctor", "--json", HUBCTL_HOME=str(tmp_path), HF_ENDPOINT="", HF_TOKEN="", HUBCTL_TOKEN=""
    )
    found = {finding["what"]: finding for finding in json.loads(text)}
    assert found["token"]["state"] == "missing"
    assert found["token"]["hint"].startswith("hubctl login")
    assert found["hubctl train"]["state"] == "ok"
    assert code == any(finding["state"] == "wrong" for finding in found.values())


def test_doctor_says_that_a_registry_cannot_be_reached_and_shows_no_token(tmp_path: Path) -> None:
    environment = {"HF_ENDPOINT": "http://127.0.0.1:1", "HUBCTL_TOKEN": TOKEN, "HUBCTL_HOME": str(tmp_path)}
    code, text = run("doctor", **environment)
    assert code == 1
    (line,) = (line for line in text.splitlines() if line.startswith("token"))
    assert "wrong" in line
    assert "127.0.0.1:1" in line
    assert TOKEN not in text


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_is_taught_to_complete(shell: str) -> None:
    code, text = run("completion", shell)
    assert code == 0
    assert "_HUBCTL_COMPLETE" in text
    assert json.loads(run("completion", shell, "--json")[1])["shell"] == shell
    if program := shutil.which(shell):
        subprocess.run([program, "-n"], input=text, text=True, check=True, timeout=30)
