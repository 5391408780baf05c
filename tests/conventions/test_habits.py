"""Habits that nobody should have to remember: one reader of the environment, one printer, small files."""

from __future__ import annotations

import ast
import re
import socket
from pathlib import Path

import pytest

from tests.conventions.source import PACKAGES, ROOT, python_files, text_files, tree

MAX_LINES = 500
PRINTERS = {
    "hubctl/cli/output.py": "the printer",
    "train/bases": "recipes run by hand, as scripts: their log is what they print",
}


def where(path: Path, node: ast.AST) -> str:
    return f"{path}:{getattr(node, 'lineno', 0)}"


def test_only_settings_reads_the_environment_and_not_at_import() -> None:
    found = []
    for path in python_files(*PACKAGES):
        allowed: set[ast.AST] = set()
        if path == Path("hubctl/settings.py"):
            functions = [n for n in ast.walk(tree(path)) if isinstance(n, ast.FunctionDef)]
            allowed = {inner for f in functions for inner in ast.walk(f)}
        for node in ast.walk(tree(path)):
            reads = isinstance(node, ast.Attribute) and node.attr in (
                "environ",
                "environb",
                "getenv",
                "putenv",
            )
            names = (
                [a.name for a in node.names]
                if isinstance(node, ast.ImportFrom) and node.module == "os"
                else []
            )
            if (reads and node not in allowed) or {"environ", "getenv"} & set(names):
                found.append(where(path, node))
    assert found == []


def test_only_the_printer_prints() -> None:
    calls = re.compile(r"(?:print|(?:click\.)?s?echo|sys\.std(?:out|err)\.write|pprint(?:\.pprint)?)")
    found = [
        where(path, node)
        for path in python_files(*PACKAGES)
        if not any(path.is_relative_to(printer) for printer in PRINTERS)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and calls.fullmatch(ast.unparse(node.func))
    ]
    assert found == []


@pytest.mark.parametrize("folder", [*PACKAGES, "tests"])
def test_files_are_short_enough_to_read(folder: str) -> None:
    lines = {str(p): len((ROOT / p).read_text().splitlines()) for p in python_files(folder)}
    assert {path: count for path, count in lines.items() if count > MAX_LINES} == {}


def test_every_module_says_its_job() -> None:
    assert [str(p) for p in python_files(*PACKAGES) if not ast.get_docstring(tree(p))] == []


def test_no_fault_is_swallowed() -> None:
    broad = {"", "Exception", "BaseException"}
    found = [
        where(path, node)
        for path in python_files(*PACKAGES)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ExceptHandler)
        and (ast.unparse(node.type) if node.type else "") in broad
        and all(isinstance(s, ast.Pass | ast.Continue) for s in node.body)
    ]
    assert found == []


def test_tests_use_real_things() -> None:
    """No mocks, and no attribute of ours or of a library replaced behind the code's back."""
    found = []
    for path in python_files("tests"):
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Import | ast.ImportFrom) and "mock" in ast.unparse(node):
                found.append(where(path, node))
            if isinstance(node, ast.Call) and re.fullmatch(r"\w+\.(setattr|delattr)", ast.unparse(node.func)):
                found.append(where(path, node))
    assert found == []


def test_no_file_names_a_machine_or_holds_a_token() -> None:
    private = re.compile(
        r"(?<![\w.$}~-])/(?:root|home|work)(?:/|\b)"  # folders of the machine it was written on
        r"|\bhf_[A-Za-z0-9]{30,}"  # a Hub token
        r"|-----BEGIN [A-Z ]*PRIVATE KEY"
    )
    found = [
        f"{path}:{number}: {line.strip()[:100]}"
        for path in text_files()
        if path != Path("tests/conventions/test_habits.py")
        for number, line in enumerate(
            (ROOT / path).read_text(encoding="utf-8", errors="replace").splitlines(), 1
        )
        if private.search(line)
    ]
    assert found == []


def test_tests_stay_on_this_machine() -> None:
    with socket.socket() as client:
        client.settimeout(0.01)
        with pytest.raises(OSError, match="tests do not connect to"):
            client.connect(("8.8.8.8", 53))
