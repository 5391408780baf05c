"""`hubctl train sweep`: the grid, the choice, and a real one that is gone on with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hubctl.errors import InputError
from tests.cli import run_cli
from train.config import TrainConfig
from train.sweep import best, cells, score

CONFIG = TrainConfig(task="segmentation", base="emoji-64-seg", data=Path("d"), output=Path("grid"))


def test_each_combination_is_a_cell_of_its_own() -> None:
    grid = cells(CONFIG, (4, 16), (1e-3, 5e-3), ())
    assert [(cell.rank, cell.learning_rate, cell.steps) for cell in grid] == [
        (4, 1e-3, None), (4, 5e-3, None), (16, 1e-3, None), (16, 5e-3, None),
    ]  # fmt: skip
    assert grid[1].output == Path("grid/rank-4_lr-0.005")
    assert [cell.rank for cell in cells(CONFIG, (4, 4), (), ())] == [4]
    assert cells(CONFIG, (), (), ())[0].output == Path("grid/only")
    assert len({cell.output for cell in cells(CONFIG, (), (0.0012345678, 0.0012345679), ())}) == 2


def test_too_many_or_impossible_cells_are_refused_before_the_first() -> None:
    with pytest.raises(InputError, match="that makes 81 trainings"):
        cells(CONFIG, range(1, 10), [n / 1000 for n in range(1, 10)], ())
    with pytest.raises(InputError, match="--rank is 0"):
        cells(CONFIG, (4, 0), (), ())


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([{"miou": 0.5, "split": "test"}, {"miou": 0.6, "split": "test", "held_out_loss": 0.9}], 1),
        ([{"miou": 0.9, "split": "all", "held_out_loss": 0.5},
          {"miou": 0.6, "split": "all", "held_out_loss": 0.4}], 1),
        ([{"similarity": 0.9, "base_similarity": 0.5, "drift": 0.9},
          {"similarity": 0.7, "base_similarity": 0.5, "drift": 0.2}], 1),
        ([{"similarity": 0.5, "base_similarity": 0.5, "drift": 0.0},  # it learnt nothing
          {"similarity": 0.6, "base_similarity": 0.5, "drift": 0.3}], 1),
        ([{"similarity": 0.4, "base_similarity": 0.5, "drift": 0.0, "held_out_loss": 0.4},
          {"similarity": 0.4, "base_similarity": 0.5, "drift": 0.0, "held_out_loss": 0.3}], 1),
        ([{"held_out_loss": 0.4}, {"held_out_loss": 0.3}, {"held_out_loss": 0.3}], 1),
        ([{"steps": 4}, {"steps": 8}], None),
    ],
)  # fmt: skip
def test_the_best_is_what_was_judged_best_on_unseen_images(
    rows: list[dict[str, Any]], expected: int | None
) -> None:
    assert best(rows) == expected


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 0.5))
def test_more_likeness_never_lowers_the_score_and_more_drift_never_raises_it(
    similarity: float, drift: float, more: float
) -> None:
    row = {"similarity": similarity, "base_similarity": 0.5, "drift": drift}
    here = score(row)
    liker, drifted = score(row | {"similarity": similarity + more}), score(row | {"drift": drift + more})
    assert here is not None
    assert liker is not None
    assert drifted is not None
    assert drifted[0] <= here[0] + 1e-12
    assert liker[0] >= here[0] - 1e-12


def test_a_grid_is_trained_judged_and_gone_on_with(
    tmp_path: Path, segmentation_base: Path, masked: Path
) -> None:
    data = shutil.copytree(masked, tmp_path / "data")
    words: list[str | Path] = [
        "train", "sweep", "segmentation", "--base", segmentation_base, "--data", data, "--output", "grid",
        "--rank", "2,4", "--steps", "2", "--batch-size", "2",
    ]  # fmt: skip
    done = run_cli(*words, cwd=tmp_path)
    assert done.code == 0, done.err
    grid = tmp_path / "grid"
    table = json.loads((grid / "sweep.json").read_text())
    assert [(row["rank"], row["steps"]) for row in table["rows"]] == [(2, 2), (4, 2)]
    assert all(0 <= row["miou"] <= 1 and row["split"] == "test" for row in table["rows"])
    assert Path(table["best"]).name in {"rank-2_steps-2", "rank-4_steps-2"}
    with Image.open(grid / "sheet.png") as sheet:
        assert sheet.height > 100
    assert (grid / "rank-2_steps-2" / "adapter_model.safetensors").is_file()
    before = {path: path.stat().st_mtime_ns for path in grid.rglob("adapter_model.safetensors")}
    words[words.index("2,4")] = "2,4,8"
    more = run_cli(*words, "--json", cwd=tmp_path)
    assert more.code == 0, more.err
    events = [json.loads(line) for line in more.out.splitlines()]
    assert sum(event["event"] == "started" for event in events) == 1
    assert [row["rank"] for row in events[-1]["rows"]] == [2, 4, 8]
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())
    reports = {path: path.stat().st_mtime_ns for path in grid.rglob("eval.json")}
    assert len(reports) == 3
    test_mask = next((data / "test/masks").iterdir())
    Image.new("L", (32, 32), 1).save(test_mask)
    elsewhere = run_cli(*words, cwd=tmp_path)
    assert elsewhere.code == 7
    assert "was trained on other data than" in elsewhere.err
    again = run_cli(*words, "--overwrite", "--rank", "2", cwd=tmp_path)
    assert again.code == 0, again.err
    assert sum(path.stat().st_mtime_ns != stamp for path, stamp in reports.items()) == 1
    other = run_cli(*words, "--seed", "1", cwd=tmp_path)
    assert other.code != 0
    assert "was trained with other settings" in other.err
    words[words.index("grid")], words[words.index("2,4,8")] = "wild", "2"
    wild = run_cli(*words, "--lr", "1e-3,1e30", "--json", cwd=tmp_path)
    assert wild.code == 0, wild.err
    table = json.loads((tmp_path / "wild" / "sweep.json").read_text())
    assert [row["lr"] for row in table["rows"]] == [1e-3]
    assert table["diverged"] == [str(Path("wild", "rank-2_lr-1e+30_steps-2"))]
