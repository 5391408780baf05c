"""diff, convert, merge, resize: as typed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.adapters import write_adapter, write_base
from tests.cli import run_cli


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Two adapters for the same base."""
    base = str(write_base(tmp_path / "base"))
    return write_adapter(tmp_path / "a", base), write_adapter(tmp_path / "b", base, rank=4, seed=2)


def test_diff_says_what_changed(pair: tuple[Path, Path]) -> None:
    ran = run_cli("diff", *pair)
    assert ran.code == 0, ran.err
    assert "file changed: pytorch_lora_weights.safetensors" in ran.out
    assert "2 → 4" in ran.out
    found = run_cli("diff", *pair, "--json").json()
    assert [layer["rank"] for layer in found["layers"]] == [[2, 4]] * 3
    changes = [layer["change"] for layer in found["layers"]]
    assert changes == sorted(changes, reverse=True)
    same = run_cli("diff", pair[0], pair[0], "--json").json()
    assert (same["change"], same["files"], same["card"], same["relative_change"]) == (0, {}, {}, 0)
    lost = run_cli("diff", pair[0], "nothing")
    assert lost.code == 3
    assert "name a folder, a weights file, or OWNER/NAME" in lost.err
