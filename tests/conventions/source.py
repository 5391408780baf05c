"""The repository's own files, as text and as syntax trees."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("hubctl", "train", "serve")
TEXT = {".py", ".md", ".toml", ".yaml", ".yml", ".html", ".txt", ".json", ".jinja", ".sh", ""}


def python_files(*folders: str) -> list[Path]:
    """Python files below `folders`, relative to the root, sorted."""
    found = (p for folder in folders for p in (ROOT / folder).rglob("*.py"))
    return sorted(p.relative_to(ROOT) for p in found if "__pycache__" not in p.parts)


def module_name(path: Path) -> str:
    """`hubctl/hub/pull.py` → `hubctl.hub.pull`."""
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


@cache
def tree(path: Path) -> ast.Module:
    """The syntax tree of a file, by its path below the root."""
    return ast.parse((ROOT / path).read_text(encoding="utf-8"), str(path))


def imports(path: Path) -> set[str]:
    """Absolute names of the modules that a file imports."""
    return {name for node in ast.walk(tree(path)) for name in _imported(node)}


def foreign_imports(path: Path) -> set[str]:
    """The statements at module level that import neither our own modules nor the standard library's."""
    known = (*PACKAGES, *sys.stdlib_module_names)
    return {
        ast.unparse(node)
        for node in _module_level(tree(path))
        if any(name.partition(".")[0] not in known for name in _imported(node))
    }


def text_files() -> list[Path]:
    """Every text file that belongs to the repository, relative to the root."""
    inside = (p for folder in (*PACKAGES, "tests", "deploy", ".ci") for p in (ROOT / folder).rglob("*"))
    found = (p for p in (*ROOT.iterdir(), *inside) if p.is_file() and p.suffix in TEXT)
    return sorted(p.relative_to(ROOT) for p in found if "__pycache__" not in p.parts and p.name != ".git")


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) and node.module else []


def _module_level(module: ast.Module) -> Iterator[ast.stmt]:
    """Statements that run when the module is imported, without the ones for type checkers."""
    for node in module.body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
