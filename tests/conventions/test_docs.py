"""What the documents say is what the program does."""

from __future__ import annotations

import re
import shlex
import sys
import tomllib

import pytest

import hubctl
from tests.conventions.filemap import README, commands, fill
from tests.conventions.source import PACKAGES, ROOT, imports, python_files


def test_the_generated_parts_of_the_readme_are_current() -> None:
    text = README.read_text(encoding="utf-8")
    assert fill(text) == text, "run: make docs"


def test_the_changelog_knows_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    released = re.findall(r"^## \[(\d+\.\d+\.\d+)\]", text, re.MULTILINE)
    assert released[0] == hubctl.__version__
    assert "## [Unreleased]" in text


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_documents_name_real_targets_files_and_commands(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake (\w+)`", text)) <= targets
    for target in re.findall(r"\]\(((?!http|#)[^)]+)\)", text):
        assert (ROOT / target).exists(), target


README_COMMANDS = [
    part.strip(" &")
    for block in re.findall(r"```sh\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    for line in block.splitlines()
    for part in line.split("|")
    if part.strip().startswith("hubctl ")
]


@pytest.mark.parametrize("line", README_COMMANDS)
def test_commands_in_the_readme_are_understood(line: str) -> None:
    """Parsed by the command line itself, not run: an option that is gone or renamed fails here."""
    words = shlex.split(line, comments=True)
    name, command = max(
        (found for found in commands() if words[: found[0].count(" ") + 1] == found[0].split()),
        key=lambda found: len(found[0]),
    )
    command.make_context(name, words[name.count(" ") + 1 :])


def declared() -> set[str]:
    """Distributions that pyproject.toml asks for, in any extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    needed = [*project["dependencies"], *(requirement for extra in extras for requirement in extra)]
    return {re.split(r"[\[<>=]", r)[0].lower().replace("_", "-") for r in needed} - {"hubctl"}


def test_every_library_that_is_imported_is_asked_for() -> None:
    other_names = {
        "PIL": "pillow",
        "yaml": "pyyaml",
        "huggingface_hub": "huggingface-hub",
        "_typeshed": "mypy",
    }
    imported = {name.partition(".")[0] for path in python_files(*PACKAGES) for name in imports(path)}
    theirs = imported - set(sys.stdlib_module_names) - set(PACKAGES)
    assert {other_names.get(name, name.replace("_", "-")) for name in theirs} <= declared()


def test_the_constraints_pin_what_the_project_needs() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    pinned = {}
    for line in lines:
        name, version = line.split("==")
        assert re.fullmatch(r"[\w.]+", version), f"{line}: an exact version without a build's suffix"
        pinned[name.lower().replace("_", "-")] = version
    assert declared() <= set(pinned)
    assert pinned["torch"] == "2.13.0"
