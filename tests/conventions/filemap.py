"""Writes the generated parts of README.md: `python -m tests.conventions.filemap` (or `make docs`).

The command table comes from the real command line, the file map from the first line of each module's
docstring, so neither can drift: a test compares them.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

import click

from hubctl.cli.main import cli
from tests.conventions.source import PACKAGES, ROOT, python_files, tree

README = ROOT / "README.md"


def commands(group: click.Group = cli, before: str = "hubctl") -> Iterator[tuple[str, click.Command]]:
    """Every command that does something, with all its words."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{before} {name}")
        else:
            yield f"{before} {name}", command


def command_table() -> str:
    """One line per command: what to type, and what it does."""
    lines = ["| command | what it does |", "|---|---|"]
    for words, command in commands():
        arguments = [
            p.make_metavar(click.Context(command)) for p in command.params if isinstance(p, click.Argument)
        ]
        lines.append(f"| `{' '.join([words, *arguments])}` | {command.get_short_help_str(limit=200)} |")
    return "\n".join(lines)


def file_map() -> str:
    """One line per file of the packages: its job, in its own words."""
    lines = []
    for path in python_files(*PACKAGES):
        job = (ast.get_docstring(tree(path)) or "").partition("\n")[0]
        if job or path.name != "__init__.py":
            lines.append(f"- `{path}`: {job}")
    return "\n".join(lines)


def fill(text: str) -> str:
    """`text` with the generated parts as they are now."""
    for name, part in (("commands", command_table()), ("files", file_map())):
        begin, end = f"<!-- {name}: make docs -->", f"<!-- end of {name} -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise SystemExit(f"README.md needs the lines '{begin}' and '{end}', once each")
        head, _, rest = text.partition(begin)
        text = f"{head}{begin}\n{part}\n{end}{rest.partition(end)[2]}"
    return text


if __name__ == "__main__":
    README.write_text(fill(README.read_text(encoding="utf-8")), encoding="utf-8")
