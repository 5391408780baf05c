"""Starting the command: quick, light, and every command explains itself."""

from __future__ import annotations

import re
import subprocess
import sys

import click
import pytest

from hubctl.cli.main import cli
from tests.cli import run_cli

SLOW_TO_LOAD = (
    "asyncio",
    "email.message",
    "http.client",
    "multiprocessing",
    "sqlite3",
    "ssl",
    "subprocess",
    "urllib.request",
)


def _commands(group: click.Group = cli, before: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for name, command in group.commands.items():
        path = (*before, name)
        found += _commands(command, path) if isinstance(command, click.Group) else [path]
    return found


def _find(path: tuple[str, ...]) -> click.Command:
    command: click.Command = cli
    for name in path:
        assert isinstance(command, click.Group)
        command = command.commands[name]
    return command


def test_help_loads_click_and_the_commands_alone() -> None:
    # How soon it answers depends on the machine; how much it loads does not.
    code = (
        "import sys\n"
        "before = set(sys.modules)\n"
        "from hubctl.cli.main import cli\n"
        "cli.main(['--help'], standalone_mode=False)\n"
        "print(*sorted(set(sys.modules) - before), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Usage: ")
    loaded = done.stderr.split()
    assert {name.partition(".")[0] for name in loaded} - sys.stdlib_module_names == {"click", "hubctl"}
    assert [name for name in loaded if name in SLOW_TO_LOAD] == []
    ours = {name for name in loaded if name.startswith("hubctl.") and not name.startswith("hubctl.cli")}
    assert ours == {"hubctl.errors", "hubctl.settings"}


@pytest.mark.parametrize("path", _commands(), ids=" ".join)
def test_every_command_has_help_with_examples(path: tuple[str, ...]) -> None:
    help_text = _find(path).help or ""
    assert re.search(r"Examples?:", help_text)
    assert f"hubctl {' '.join(path)}" in help_text


@pytest.mark.parametrize("path", _commands(), ids=" ".join)
def test_every_command_takes_json(path: tuple[str, ...]) -> None:
    options = {option for param in _find(path).params for option in param.opts}
    assert {"--json", "--quiet"} <= options


def test_a_mistyped_command_names_the_nearest() -> None:
    ran = run_cli("pusch", "x")
    assert ran.code == 2
    assert "Did you mean 'push'?" in ran.err


def test_a_mistyped_option_names_the_nearest() -> None:
    ran = run_cli("push", "x", "--privat")
    assert ran.code == 2
    assert "--private" in ran.err


def test_usage_errors_are_json_too() -> None:
    import json

    ran = run_cli("--json", "push")
    assert ran.code == 2
    assert json.loads(ran.err)["error"]["type"] == "InputError"
    assert ran.out == ""


def test_version() -> None:
    import hubctl

    assert hubctl.__version__ in run_cli("--version").out
