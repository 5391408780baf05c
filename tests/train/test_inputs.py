"""No output takes the place of what it is made from: the data, the adapter, the base."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.cli import run_cli
from tests.train.conftest import Trained


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def place(tmp_path: Path, trimap: Trained, masked: Path) -> Path:
    """A folder with a base, data for it and an adapter."""
    for source, name in ((trimap.base, "base"), (masked, "data"), (trimap.folder, "adapter")):
        shutil.copytree(source, tmp_path / "all" / name)
    (tmp_path / "all" / "link").symlink_to("data")
    return tmp_path / "all"


@pytest.mark.parametrize(
    "words",
    [
        "train segmentation --base base --data data --output data",
        "train segmentation --base base --data data --output .",
        "train segmentation --base base --data data --output data/train",
        "train segmentation --base base --data link --output data",
        "train segmentation --base base --data data --output link",
        "train segmentation --base base --data data --output base",
        "train sweep segmentation --base base --data data --output data --rank 2",
        "train sweep segmentation --base base --data data --output base --rank 2",
        "eval adapter --data data --output adapter",
        "eval adapter --data data --output data",
        "eval adapter --data data --base base --output base",
        "eval adapter --data data --output ../all",
        "reproduce adapter --data data --output adapter",
        "reproduce adapter --data data --output data",
        "convert adapter --to peft --output adapter",
        "resize adapter --rank 2 --output adapter",
        "merge adapter adapter --output .",
    ],
)
def test_it_is_refused_before_anything_is_done(place: Path, words: str) -> None:
    before = files(place)
    ran = run_cli(*words.split(), *([] if "sweep" in words else ["--overwrite"]), cwd=place)
    assert ran.code == 2
    assert "cannot be the output" in ran.err
    assert files(place) == before


def test_a_working_folder_does_not_either(place: Path) -> None:
    (place / "data").rename(place / "pets.training")
    before = files(place)
    ran = run_cli(
        *["train", "segmentation", "--base", "base", "--data", "pets.training", "--output", "pets"], cwd=place
    )
    assert ran.code == 2
    assert "pets.training is read, and would be deleted" in ran.err
    assert files(place) == before


def test_a_new_folder_in_one_is_fine_and_may_be_made_again(place: Path) -> None:
    for more in ([], ["--overwrite"]):
        ran = run_cli(
            *["eval", "adapter", "--data", "data", "--base", "base", "--output", "adapter/eval"],
            *more,
            cwd=place,
        )
        assert ran.code == 0, ran.err
    assert (place / "adapter/eval/overlays.png").is_file()
