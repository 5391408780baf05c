"""The error boundary: exit codes, messages, and what it lets through."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

import hubctl
from hubctl import errors
from hubctl.cli.main import EXIT_CODES, exit_code
from hubctl.settings import child_environment
from tests.cli import run_cli


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InputError("x"), 2),
        (errors.DataError("x"), 2),
        (errors.NotFoundError("x"), 3),
        (errors.AccessError("x"), 4),
        (errors.AdapterError("x"), 5),
        (errors.AdapterMismatchError("x"), 5),
        (errors.IntegrityError("x"), 6),
        (errors.ConflictError("x"), 7),
        (errors.UnavailableError("x"), 8),
        (errors.OverloadedError("x"), 9),
        (errors.HubctlError("x"), 1),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_exit_codes(error: errors.HubctlError, code: int) -> None:
    assert exit_code(error) == code


def test_exit_codes_tell_the_classes_apart() -> None:
    assert len(set(EXIT_CODES.values())) == len(EXIT_CODES)


def test_a_fault_is_one_message_and_the_next_command() -> None:
    ran = run_cli("remote", "use", "nowhere")
    assert ran.code == 3
    assert ran.out == ""
    assert ran.err.splitlines() == [
        "Error: no remote 'nowhere'",
        "  next: hubctl remote add nowhere URL (known: hf)",
    ]


def test_a_fault_is_json_where_json_was_asked_for() -> None:
    import json

    ran = run_cli("remote", "use", "nowhere", "--json")
    assert ran.code == 3
    assert ran.out == ""
    assert json.loads(ran.err)["error"] == {
        "type": "NotFoundError",
        "message": "no remote 'nowhere'",
        "hint": "hubctl remote add nowhere URL (known: hf)",
    }


@pytest.mark.parametrize(
    ("name", "text"), [("HUBCTL_CACHE_QUOTA", "foo"), ("HUBCTL_HOME", "~no-such-account/x")]
)
def test_a_wrong_variable_is_explained_and_help_needs_none(
    name: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, text)
    ran = run_cli("remote", "list")
    assert ran.code == 2
    assert name in ran.err
    assert "Traceback" not in ran.err
    assert run_cli("--help").code == 0


@pytest.mark.parametrize("words", [("nosuch", "--json"), ("pull", "--json"), ("list", "--nosuch", "--json")])
def test_a_wrong_command_line_is_json_too(words: tuple[str, ...]) -> None:
    import json

    ran = run_cli(*words)
    assert (ran.code, ran.out) == (2, "")
    assert json.loads(ran.err)["error"]["type"] == "InputError"


def _run_with_command(body: str) -> subprocess.CompletedProcess[str]:
    """Run `hubctl probe`, a command added for this test, with `body` as its callback."""
    code = (
        "import os, signal, sys\nimport click\nfrom hubctl.cli.main import cli, main\n"
        f"@cli.command()\ndef probe():\n    {body}\n"
        "sys.argv = ['hubctl', 'probe']\nmain()\n"
    )
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env=child_environment(),
        timeout=30,
    )


def test_a_bug_keeps_its_traceback() -> None:
    done = _run_with_command("raise ZeroDivisionError('a bug')")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "ZeroDivisionError: a bug" in done.stderr


def test_a_file_that_is_denied_is_named() -> None:
    done = _run_with_command("open('/no/such/file')")
    assert done.returncode == 1
    assert done.stderr == "Error: cannot use /no/such/file: No such file or directory\n"


def test_a_fault_of_the_system_that_names_no_file_is_a_bug() -> None:
    for error in ("OSError('odd')", "OSError(5, 'Input/output error')", "OSError(None, 'odd', '/file')"):
        assert "Traceback" in _run_with_command(f"raise {error}").stderr


def test_a_folder_that_is_gone_is_said(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    done = _run_with_command(f"os.mkdir('{gone}'); os.chdir('{gone}'); os.rmdir('{gone}'); os.getcwd()")
    assert done.stderr == "Error: the folder you are in is gone\n  next: cd to one that is there\n"


def _run_into(out: IO[str], *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hubctl", *words],
        stdout=out, stderr=subprocess.PIPE, text=True, check=False, env=child_environment(**env),
    )  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="a device of Linux")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", ["remote list", "--version", "remote --help"])
def test_an_answer_that_finds_no_room_is_said(words: str, unbuffered: str) -> None:
    with Path("/dev/full").open("w") as full:
        done = _run_into(full, *words.split(), PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == 1
    assert done.stderr == "Error: cannot write to standard output: No space left on device\n"


def test_ctrl_c_is_quiet() -> None:
    done = _run_with_command("os.kill(os.getpid(), signal.SIGINT); signal.pause()")
    assert done.returncode == 130
    assert done.stderr.strip() == ""


def test_a_missing_library_names_the_extra() -> None:
    done = _run_with_command("raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')")
    assert done.returncode == 2
    assert "needs 'torch', which is not installed" in done.stderr
    assert "pip install 'hubctl[all]'" in done.stderr


def test_a_missing_module_of_ours_is_a_bug() -> None:
    done = _run_with_command("import hubctl.no_such_module")
    assert "Traceback" in done.stderr


@pytest.mark.parametrize("words", ["remote list", "--help"])
def test_a_closed_pipe_is_no_error(words: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as out:
        done = _run_into(out, *words.split())
    assert done.stderr == ""


@pytest.mark.parametrize(
    "words",
    [("train", "text-to-image", "--base", "emoji-64", "--data", "d", "--output", "o"), ("serve",)],
    ids=lambda words: words[0],
)
def test_a_users_own_module_of_the_same_name_is_explained(words: tuple[str, ...], tmp_path: Path) -> None:
    name = words[0]
    own = tmp_path / f"{name}.py"
    own.write_text("raise SystemExit('the user\\'s own script ran')\n")
    path = f"{tmp_path}{os.pathsep}{Path(hubctl.__file__).parent.parent}"
    ran = run_cli(*words, cwd=tmp_path, PYTHONPATH=path)
    assert ran.code == 2
    assert f"{own} hides hubctl's own package '{name}'" in ran.err
    assert f"without {tmp_path} in PYTHONPATH" in ran.err
    assert "own script ran" not in ran.out + ran.err
    assert run_cli("remote", "list", cwd=tmp_path, PYTHONPATH=path).code == 0, "other commands do not mind"
