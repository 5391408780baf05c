"""The hub's benchmark on a small scale: it measures what it says, and its adapters are real."""

from __future__ import annotations

from pathlib import Path

import pytest

from hubctl.adapter.gate import gate
from hubctl.base_models import embedded_bases, locate_base
from hubctl.bench.hub import BASE, Row, to_markdown, write_adapter
from hubctl.bench.pullers import plain_server, pull_together
from tests.cli import run_cli


def test_as_typed(tmp_path: Path) -> None:
    small = ("--repositories", "1000", "--rounds", "1", "--size", "2MB", "--pullers", "5")
    rows = run_cli("bench", "hub", *small, "-o", tmp_path, "--json").json()["rows"]
    assert [row["what"] for row in rows] == [
        "push of a 2 MB adapter",
        "pull of a 2 MB adapter",
        "5 pullers of one file",
        "the latest 100, of 1,000",
        "a name, of 1,000",
        "a name that is not there, of 1,000",
        "a tag, of 1,000",
        "a tag that is not there, of 1,000",
        "hubctl --help",
    ]
    assert all(row["ours"] > 0 for row in rows)
    assert [row["ratio"] is not None for row in rows] == [True] * 3 + [False] * 5 + [True]
    assert (tmp_path / "hub.md").read_text().count("\n| ") == len(rows) + 1


def test_the_adapter_is_as_large_as_asked_and_fits_its_base(tmp_path: Path) -> None:
    first, second = (write_adapter(tmp_path / f"{seed}", 5_000_000, seed) for seed in (1, 2))
    layout = gate(first, locate_base(str(embedded_bases()[BASE])))
    assert abs(layout.weights_file.stat().st_size - 5_000_000) < 250_000
    assert layout.weights_file.read_bytes() != (second / layout.weights_file.name).read_bytes()


@pytest.mark.parametrize("count", [1, 3, 9])
def test_every_byte_of_every_puller_counts(tmp_path: Path, count: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(3_000_000))
    with plain_server(path) as url:
        assert pull_together(url, count) > 0


def test_ratios_are_of_speeds() -> None:
    slower = Row(what="a", ours=2.0, unit="s", beside="b", other=1.0)
    faster = Row(what="a", ours=2.0, unit="MB/s", beside="b", other=1.0)
    alone = Row(what="a", ours=2.0, unit="ms")
    assert [row.ratio for row in (slower, faster, alone)] == [0.5, 2.0, None]
    assert "| a | 2 s | b: 1 s | 0.50 |" in to_markdown([slower], "here")
