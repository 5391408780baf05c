"""cache list, du, gc, pin: as typed, after real pulls."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from tests.adapters import write_adapter, write_base
from tests.cli import run_cli, run_limited
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


@pytest.fixture
def read_only(pulled: list[Path], home: Path) -> Iterator[list[Path]]:
    """The same where nobody may write."""
    everything = [home / "cache", *(home / "cache").rglob("*")]
    for path in everything:
        path.chmod(path.stat().st_mode & ~0o222)
    yield pulled
    for path in everything:
        path.chmod(path.stat().st_mode | 0o200)


def test_a_cache_that_nobody_may_write_to_is_still_read(read_only: list[Path], tmp_path: Path) -> None:
    repo = "/".join(read_only[0].parts[-3:-1])
    assert run_limited("pull", repo, "-q").out == f"{read_only[0]}\n"
    base = run_cli("show", repo, "--json").json()["base_model"]
    fourth = run_cli("push", write_adapter(tmp_path / "fourth", base), "-q").out.strip()
    for words in (("pull", fourth), ("cache", "pin", repo), ("cache", "gc", "--quota", "0", "-y")):
        ran = run_limited(*words)
        assert ran.code == 2, ran.err
        assert "Error: cannot write" in ran.err
        assert "Permission denied" in ran.err
        assert "HUBCTL_CACHE" in ran.err


def test_a_full_disk_is_said_and_a_pull_goes_on_where_there_is_room(pulled: list[Path], home: Path) -> None:
    shutil.rmtree(pulled[0])
    repo = "/".join(pulled[0].parts[-3:-1])
    ran = run_limited("pull", repo, largest_file_bytes=200)
    assert ran.code == 2, ran.err
    assert f"Error: cannot write {pulled[0]}: File too large" in ran.err
    assert run_cli("pull", repo, "-q").out == f"{pulled[0]}\n"


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
