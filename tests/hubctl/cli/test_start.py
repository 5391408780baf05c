"""Starting the command: quick, light, and every command explains itself."""

from __future__ import annotations

import re
import resource
import subprocess
import sys

import click
import pytest

from hubctl.cli.main import cli
from tests.cli import run_cli

HEAVY = ("torch", "ray", "diffusers", "peft", "transformers", "huggingface_hub", "rich", "numpy", "uvicorn")
HELP_LIMIT_S = 0.2


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


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from hubctl.cli.main import cli\n"
        "cli.main(['--help'], standalone_mode=False)\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Usage: ")
    assert done.stderr.strip() == "[]"


def test_help_is_quick() -> None:
    # Processor time, the best of several: on an idle machine it is the wall time, and on a busy one the limit
    # is still on what this program does, not on what the others do.
    took = []
    for _ in range(5):
        start = _children_s()
        run_cli("--help")
        took.append(_children_s() - start)
    assert min(took) <= HELP_LIMIT_S, took


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


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
