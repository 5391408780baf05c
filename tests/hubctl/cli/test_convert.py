"""diff, convert, merge, resize: as typed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.adapters import write_adapter, write_base
from tests.cli import run_cli

if TYPE_CHECKING:
    from tests.registry_server import RegistryServer


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


def test_names_on_a_registry_are_compared_too(registry: RegistryServer, tmp_path: Path) -> None:
    token = registry.token("differ")
    added = run_cli("remote", "add", "local", registry.endpoint, "--use", "--token-stdin", stdin=token + "\n")
    assert added.code == 0, added.err
    base = run_cli("push", write_base(tmp_path / "base"), "--kind", "base", "-q").out.strip()
    local = write_adapter(tmp_path / "mine", base)
    assert run_cli("push", local, "--repo", "differ/mine").code == 0
    other = write_adapter(tmp_path / "other", base, seed=2)
    assert run_cli("diff", "differ/mine", other, "--json").json()["change"] > 0
    assert run_cli("diff", local, "differ/mine@main", "-q").out == "0.0\n"
    made = run_cli("convert", "differ/mine", "--to", "kohya", "-o", tmp_path / "kohya")
    assert made.out == f"{tmp_path / 'kohya'}: 3 layers (unet), diffusers → kohya\n"


def test_every_dialect_passes_the_check(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base = str(tmp_path / "base")
    for step, (dialect, source) in enumerate(
        [("peft", pair[0]), ("diffusers", tmp_path / "0"), ("kohya", pair[0]), ("diffusers", tmp_path / "2")]
    ):
        made = run_cli("convert", source, "--to", dialect, "-o", tmp_path / str(step), "--json").json()
        assert (made["to"], made["layers"], made["components"]) == (dialect, 3, ["unet"])
        if dialect != "kohya":
            checked = run_cli("check", tmp_path / str(step), "--base", base)
            assert checked.code == 0, checked.err
        assert run_cli("diff", pair[0], tmp_path / str(step), "-q").out == "0.0\n"
    card = (tmp_path / "0" / "README.md").read_text()
    assert "library_name: peft\n" in card
    assert (tmp_path / "1" / "README.md").read_text() == (pair[0] / "README.md").read_text()
    again = run_cli("convert", pair[0], "--to", "peft", "-o", tmp_path / "0")
    assert again.code == 7
    assert run_cli("convert", pair[0], "--to", "peft", "-o", tmp_path / "0", "--overwrite").code == 0


def test_merge_and_resize(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base = str(tmp_path / "base")
    both = tmp_path / "both"
    made = run_cli("merge", *pair, "--weights", "0.7,0.3", "--method", "cat", "-o", both, "--json").json()
    assert (made["ranks"], made["weights"]) == ([6], [0.7, 0.3])
    assert run_cli("check", both, "--base", base).code == 0
    card = (both / "README.md").read_text()
    assert f"base_model: {base}" in card
    assert "0.7 x `a` + 0.3 x `b`" in card

    ran = run_cli("resize", both, "--rank", "2", "-o", tmp_path / "low")
    assert ran.code == 0, ran.err
    assert ran.out.startswith("GROUP")
    assert "unet.down_blocks.0" in ran.out
    found = run_cli("resize", both, "--rank", "2", "-o", tmp_path / "low", "--overwrite", "--json").json()
    assert 0 < found["total"]["relative"] < 1
    assert run_cli("check", tmp_path / "low", "--base", base).code == 0

    wrong: tuple[tuple[list[str | Path], str], ...] = (
        (["merge", pair[0]], "two adapters or more"),
        (["merge", *pair, "--weights", "1"], "'1' is not 2 numbers"),
        (["merge", *pair, "--method", "linear"], "has ranks 2, 4"),
    )
    for words, said in wrong:
        refused = run_cli(*words, "-o", tmp_path / "no")
        assert refused.code == 2
        assert said in refused.err
    other = write_adapter(tmp_path / "other", "alice/other")
    refused = run_cli("merge", pair[0], other, "-o", tmp_path / "no")
    assert refused.code == 5
    assert "--base" in refused.err
    assert run_cli("merge", pair[0], other, "-o", tmp_path / "yes", "--base", base).code == 0
