"""verify: as typed, on a cache that somebody has been at."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hubctl.settings import environment
from tests.adapters import write_adapter, write_base
from tests.cli import run_cli

if TYPE_CHECKING:
    from tests.registry_server import RegistryServer

WEIGHTS = "pytorch_lora_weights.safetensors"
_numbers = itertools.count()


@pytest.fixture
def folder(registry: RegistryServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An adapter in the cache."""
    monkeypatch.setenv("HF_ENDPOINT", registry.endpoint)
    monkeypatch.setenv("HF_TOKEN", registry.token(f"verifier{next(_numbers)}"))
    base = run_cli("push", write_base(tmp_path / "base"), "--kind", "base", "-q").out.strip()
    repo = run_cli("push", write_adapter(tmp_path / "a", base), "-q").out.strip()
    return Path(run_cli("pull", repo, "-q").out.strip())


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], object]] = {
    f"{WEIGHTS}: changed": lambda folder: flip(folder / WEIGHTS),
    "hubctl.json: missing": lambda folder: (folder / "hubctl.json").unlink(),
    "README.md: changed": lambda folder: (folder / "README.md").write_text("short"),
    "extra.png: not of this commit": lambda folder: (folder / "extra.png").write_bytes(b"x"),
    "promised is not known": lambda folder: folder.with_name(f".{folder.name}.json").write_text("[]"),
}


def test_a_sound_cache(folder: Path) -> None:
    (row,) = run_cli("verify", "--json").json()
    assert (row["kind"], row["commit"], row["faults"]) == ("adapter", folder.name, {})
    named = run_cli("verify", f"{row['id']}@{folder.name[:8]}")
    assert named.code == 0
    assert "as promised" in named.out


@pytest.mark.parametrize("said", DAMAGE)
def test_damage_is_named(folder: Path, said: str) -> None:
    DAMAGE[said](folder)
    ran = run_cli("verify")
    assert ran.code == 6
    assert said in ran.out
    assert f"rm -r {folder}, then hubctl pull" in " ".join(ran.err.split())


def test_nothing_of_that_name(folder: Path) -> None:
    assert run_cli("verify", "alice/none").code == 3
    assert run_cli("verify", f"{folder.parent.parent.name}/{folder.parent.name}@{'f' * 40}").code == 3
    environment().cache.rename(environment().cache.with_name("elsewhere"))
    empty = run_cli("verify")
    assert empty.code == 3
    assert f"there is nothing in {environment().cache}" in empty.err
