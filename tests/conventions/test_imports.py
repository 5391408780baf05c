"""Every module imports cold, hubctl stays light, and the pure modules stay pure."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conventions.source import PACKAGES, ROOT, foreign_imports, imports, module_name, python_files, tree

HEAVY = ("torch", "ray", "diffusers", "peft", "transformers", "accelerate", "numpy", "PIL", "matplotlib")
MODELS = "hubctl/modeling"  # the part of hubctl that needs torch, for train and serve
PURE = (
    "hubctl/errors.py",
    "hubctl/refs.py",
    "hubctl/adapter/check.py",
    "hubctl/adapter/fingerprint.py",
    "serve/engine/fair.py",
    "serve/engine/rows.py",
    "serve/engine/schedule.py",
    "train/plan.py",
)

# A fresh interpreter that first imports what our modules import from others, so that each of its forks can
# import one module of ours cold without paying for torch again. Prints {module: [fault, heavy modules]}.
RUNNER = """
import gc, importlib, json, os, sys, traceback, warnings
warnings.simplefilter("ignore")
theirs, ours, heavy = json.load(sys.stdin)
for statement in theirs:  # with the names, which may be modules that are only imported when somebody asks
    exec(statement)
gc.freeze()  # or each fork's collections would copy what it has inherited
found = {}
for name in ours:
    ends = os.pipe()
    if os.fork() == 0:
        fault = ""
        try:
            importlib.import_module(name)
        except BaseException:
            fault = traceback.format_exc()
        os.write(ends[1], json.dumps([fault[-2000:], [h for h in heavy if h in sys.modules]]).encode())
        os._exit(0)
    os.close(ends[1])
    with open(ends[0]) as answer:
        found[name] = json.load(answer)
    os.wait()
json.dump(found, sys.stdout)
"""


def import_cold(theirs: set[str], ours: list[str]) -> dict[str, tuple[str, list[str]]]:
    done = subprocess.run(
        [sys.executable, "-c", RUNNER],
        input=json.dumps([sorted(theirs), ours, HEAVY]),
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, tuple[str, list[str]]] = json.loads(done.stdout)
    return found


def test_every_module_of_hubctl_imports_cold_and_light() -> None:
    paths = [p for p in python_files("hubctl") if p.name != "__main__.py" and not p.is_relative_to(MODELS)]
    theirs = {statement for path in paths for statement in foreign_imports(path)}
    ours = [module_name(p) for p in paths]
    found = import_cold(theirs, ours)
    assert set(found) == set(ours)
    assert {name: fault for name, (fault, _) in found.items() if fault} == {}
    assert {name: heavy for name, (_, heavy) in found.items() if heavy} == {}


def test_every_module_of_train_and_serve_imports_cold() -> None:
    paths = [p for p in python_files(MODELS, "train", "serve") if p.name != "__main__.py"]
    theirs = {statement for path in paths for statement in foreign_imports(path)}
    found = import_cold(theirs, [module_name(p) for p in paths])
    assert {name: fault for name, (fault, _) in found.items() if fault} == {}


@pytest.mark.parametrize("path", map(Path, PURE), ids=str)
def test_pure_modules_import_only_the_standard_library_and_each_other(path: Path) -> None:
    pure = {module_name(Path(p)) for p in PURE}
    foreign = {
        n for n in imports(path) if n.partition(".")[0] not in sys.stdlib_module_names and n not in pure
    }
    assert foreign == set()


def test_ray_is_imported_by_one_file_each_of_server_and_training_and_by_end_to_end_tests() -> None:
    users = {
        str(path)
        for path in python_files(*PACKAGES, "tests")
        if any(name.partition(".")[0] == "ray" or name == "serve.app" for name in imports(path))
    }
    allowed = {"serve/app.py", "hubctl/cli/serve.py", "train/cluster.py"}
    assert {u for u in users if not u.startswith("tests/e2e/")} <= allowed


def test_the_server_never_calls_ray_s_package_serve() -> None:
    # `from ray import serve` would hide our own package of that name in the file.
    for path in python_files(*PACKAGES, "tests"):
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ImportFrom) and node.module == "ray":
                assert all(a.name != "serve" or a.asname == "ray_serve" for a in node.names), path
