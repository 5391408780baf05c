"""cache list, du, gc, pin: as typed, after real pulls."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from tests.adapters import write_adapter, write_base
from tests.cli import run_cli
from train.encoded import EncodedStore

if TYPE_CHECKING:
    from tests.registry_server import RegistryServer

_numbers = itertools.count()


@pytest.fixture
def pulled(registry: RegistryServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Three adapters in the cache, not used for hours; the first for longest."""
    monkeypatch.setenv("HF_ENDPOINT", registry.endpoint)
    monkeypatch.setenv("HF_TOKEN", registry.token(f"hoarder{next(_numbers)}"))
    base = run_cli("push", write_base(tmp_path / "base"), "--kind", "base", "-q").out.strip()
    folders = []
    for number, name in enumerate(("first", "second", "third")):
        repo = run_cli("push", write_adapter(tmp_path / name, base), "-q").out.strip()
        folders.append(Path(run_cli("pull", repo, "-q").out.strip()))
        os.utime(folders[-1], (1000 + number, 1000 + number))
    return folders


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_room_is_made_by_what_was_not_used(pulled: list[Path]) -> None:
    rows = run_cli("cache", "list", "--json").json()
    assert [Path(row["path"]) for row in rows] == pulled[::-1]
    assert [row["size_bytes"] for row in rows] == [size(folder) for folder in pulled[::-1]]
    total = sum(map(size, pulled))
    assert run_cli("cache", "du", "--json").json()["total_bytes"] == total

    first, second, third = ("/".join(folder.parts[-3:-1]) for folder in pulled)
    assert run_cli("pull", first, "-q").code == 0  # used now
    assert run_cli("cache", "pin", second).code == 0
    shown = run_cli("cache", "gc", "--quota", "0", "--dry-run", "--json").json()
    assert [row["id"] for row in shown] == [third]
    assert pulled[2].exists()
    refused = run_cli("cache", "gc", "--quota", "0")
    assert refused.code == 2
    assert pulled[2].exists()
    done = run_cli("cache", "gc", "--quota", "0", "-y")
    assert "freed" in done.err
    assert "stay: pinned, in use" in done.err
    assert [folder.exists() for folder in pulled] == [True, True, False]
    assert run_cli("cache", "du", "-q").out.strip() == str(total - size_of_third(rows, third))
    assert run_cli("cache", "unpin", second, "--json").json()[0]["pinned"] is False


def test_a_standing_quota_is_kept_after_each_download(
    pulled: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HUBCTL_CACHE_QUOTA", str(sum(map(size, pulled[1:]))))
    base = run_cli("show", "/".join(pulled[0].parts[-3:-1]), "--json").json()["base_model"]
    repo = run_cli("push", write_adapter(tmp_path / "fourth", base), "-q").out.strip()
    new = Path(run_cli("pull", repo, "-q").out.strip())
    assert [folder.exists() for folder in [*pulled, new]] == [False, False, True, True]


def size_of_third(rows: list[dict[str, object]], third: str) -> int:
    (size_bytes,) = (row["size_bytes"] for row in rows if row["id"] == third)
    assert isinstance(size_bytes, int)
    return size_bytes


def test_what_trainings_encoded_is_shown_and_goes_when_asked(pulled: list[Path], home: Path) -> None:
    folder = home / "cache" / "encoded"
    store = EncodedStore(folder, {})
    for name in ("a", "b"):
        store.get([name], lambda: {"mean": torch.zeros(100)}, torch.device("cpu"))
    took = size(folder)
    total = sum(map(size, pulled)) + took
    shown = run_cli("cache", "du", "--json").json()
    assert (shown["encoded_bytes"], shown["encoded_batches"], shown["total_bytes"]) == (took, 2, total)
    assert "images and prompts in 2 encoded batches" in run_cli("cache", "du").out
    *_, row = run_cli("cache", "list", "--json").json()
    assert (row["kind"], row["size_bytes"], row["batches"]) == ("encoded", took, 2)

    neither = run_cli("cache", "gc", "-y")
    assert neither.code == 2
    assert "neither --quota nor --encoded" in neither.err
    assert run_cli("cache", "gc", "--quota", "1TB", "-y", "--json").json() == []  # no part of the quota
    refused = run_cli("cache", "gc", "--encoded")
    assert refused.code == 2
    assert "hubctl cache gc --encoded --yes" in refused.err
    assert [row["kind"] for row in run_cli("cache", "gc", "--encoded", "--dry-run", "--json").json()] == [
        "encoded"
    ]
    assert size(folder) == took
    (gone,) = run_cli("cache", "gc", "--encoded", "-y", "--json").json()
    assert gone["size_bytes"] == took
    assert not folder.exists()
    assert all(adapter.exists() for adapter in pulled)
    assert run_cli("cache", "du", "--json").json()["encoded_batches"] == 0


def test_an_empty_cache() -> None:
    assert "is empty; next: hubctl pull" in "".join((ran := run_cli("cache", "list")).out + ran.err)
    assert run_cli("cache", "gc", "--quota", "1GB", "-y").code == 0
    assert run_cli("cache", "pin", "alice/none").code == 3
