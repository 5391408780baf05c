"""lock and pull --locked: as typed, against a real registry; hashes against hashlib's own."""

from __future__ import annotations

import hashlib
import itertools
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from huggingface_hub import HfApi

from hubctl.settings import environment
from tests.adapters import contents, write_adapter, write_base
from tests.cli import run_cli

if TYPE_CHECKING:
    from tests.registry_server import RegistryServer

NOBODY = "http://127.0.0.1:9"
"""A registry that answers nothing: what works with it asks for nothing."""
_numbers = itertools.count()


class Project(NamedTuple):
    """A folder with a hub.lock of one adapter."""

    folder: Path
    adapter: Path
    repo: str
    api: HfApi


@pytest.fixture
def project(registry: RegistryServer, tmp_path: Path) -> Project:
    user = f"locker{next(_numbers)}"
    token = registry.token(user)
    run_cli("remote", "add", "local", registry.endpoint, "--use", "--token-stdin", stdin=token + "\n")
    base = run_cli("push", write_base(tmp_path / "base"), "--kind", "base", "-q").out.strip()
    adapter = write_adapter(tmp_path / "line-art", base)
    repo = run_cli("push", adapter, "-q").out.strip()
    folder = tmp_path / "project"
    folder.mkdir()
    locked = run_cli("lock", repo, cwd=folder)
    assert locked.code == 0, locked.err
    return Project(folder, adapter, repo, HfApi(registry.endpoint, token=token))


def test_the_file_says_what_is_on_the_registry(project: Project) -> None:
    (entry,) = tomllib.loads((project.folder / "hub.lock").read_text())["adapters"].values()
    base = entry["base"]
    assert entry["commit"] == project.api.model_info(project.repo).sha
    assert entry["base_commit"] == project.api.model_info(base).sha
    assert (entry["revision"], entry["rank"]) == ("main", [2])
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in contents(project.adapter).items()}
    assert entry["files"] == sums
    (row,) = run_cli("lock", "--json", cwd=project.folder).json()
    assert (row["id"], row["commit"], row["files"]) == (project.repo, entry["commit"], sums)


def test_a_locked_pull_of_what_is_cached_asks_nobody(project: Project) -> None:
    pulled = run_cli("pull", "--locked", "--json", cwd=project.folder, HF_ENDPOINT=NOBODY).json()
    assert [(row["repo"], row["cached"]) for row in pulled] == [(project.repo, True)]
    assert contents(Path(pulled[0]["path"])) == contents(project.adapter)
    one = run_cli("pull", project.repo, "--locked", "-q", cwd=project.folder, HF_ENDPOINT=NOBODY)
    assert one.out.strip() == pulled[0]["path"]


def test_a_moved_branch_changes_nothing_until_upgraded(project: Project) -> None:
    first = project.api.model_info(project.repo).sha
    write_adapter(project.adapter, run_cli("show", project.repo, "--json").json()["base_model"], seed=7)
    run_cli("push", project.adapter)
    second = project.api.model_info(project.repo).sha
    assert second != first
    (row,) = run_cli("pull", "--locked", "--json", cwd=project.folder).json()
    assert row["commit"] == first

    (moved,) = run_cli("lock", "--upgrade", "--json", cwd=project.folder).json()
    assert (moved["from"], moved["commit"]) == (first, second)
    assert moved["change"] > 0
    assert moved["files"] == {"pytorch_lora_weights.safetensors": "changed"}
    (row,) = run_cli("pull", "--locked", "--json", cwd=project.folder).json()
    assert row["commit"] == second


def test_an_upgrade_prints_the_difference(project: Project) -> None:
    write_adapter(project.adapter, run_cli("show", project.repo, "--json").json()["base_model"], seed=7)
    run_cli("push", project.adapter)
    shown = run_cli("lock", "--upgrade", cwd=project.folder)
    assert shown.code == 0, shown.err
    assert "ΔW of all layers" in shown.out
    assert " -> " in shown.out


def test_altered_files_are_refused(project: Project) -> None:
    (cached,) = (environment().cache / "adapters" / project.repo).glob("[0-9a-f]*")
    (cached / "README.md").write_text("changed by somebody")
    refused = run_cli("pull", "--locked", cwd=project.folder)
    assert refused.code == 6
    assert "differs from the lock file: README.md" in refused.err


def test_what_is_not_locked_is_refused(project: Project) -> None:
    other = run_cli("pull", "alice/other", "--locked", cwd=project.folder)
    assert other.code == 3
    assert "alice/other is not in hub.lock" in other.err
    wrong = run_cli("pull", f"{project.repo}@v9", "--locked", cwd=project.folder)
    assert wrong.code == 7
    assert run_cli("lock", "alice/other", "--upgrade", cwd=project.folder).code == 3
    assert run_cli("pull", "--locked", cwd=project.adapter).code == 3


def test_entries_can_be_taken_out(project: Project) -> None:
    assert run_cli("lock", project.repo, "--remove", cwd=project.folder).code == 0
    assert run_cli("lock", "--json", cwd=project.folder).json() == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("version = 2\n", "is of version 2"),
        ("adapters = 1\n", "adapters is"),
        ('[adapters."../x"]\nrevision="main"\ncommit="00"\nweights="w"\nrank=[1]\n', "not a repository id"),
        ('[adapters."a/x"]\nrevision="main"\ncommit="00"\nweights="w"\nrank=[1]\n', "no hash of w"),
        ('[adapters."a/x"]\nrevision="main"\nsha="00"\n', "unknown setting 'sha'"),
    ],
)
def test_damaged_lock_files(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "hub.lock").write_text(text)
    refused = run_cli("pull", "--locked", cwd=tmp_path)
    assert refused.code == 2, refused.err
    assert said in refused.err
