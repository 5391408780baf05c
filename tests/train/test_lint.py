"""`hubctl data check` on folders with every fault planted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hubctl.errors import DataError
from tests.cli import run_cli
from tests.train import tiny
from train.dataset import read_captions
from train.lint import EXIF_ORIENTATION, lint


def codes(folder: Path, **settings: object) -> set[tuple[str, str]]:
    return {(f.code, f.file) for f in lint(folder, min_px=16, **settings).findings}  # type: ignore[arg-type]


def test_a_good_folder_has_nothing_to_complain_about(captioned: Path, masked: Path) -> None:
    found = lint(captioned, min_px=16)
    assert (found.kind, found.images, found.findings) == ("captions", 4, ())
    assert len(found.captions) == 3
    items = {item.path.name: item.caption for item in read_captions(captioned).train}
    assert found.captions.items() <= items.items()
    assert lint(masked, min_px=16).classes == pytest.approx(
        {"outside": 0.75, "border": 0.1875, "inside": 0.0625}
    )


def _corrupt(folder: Path) -> None:
    whole = (folder / "1.png").read_bytes()
    (folder / "1.png").write_bytes(whole[: len(whole) // 2])


def _twin(folder: Path) -> None:
    # Another file format, so other bytes of nearly the same picture.
    Image.open(folder / "2.png").save(folder / "3.png", compress_level=0)


def _turned(folder: Path) -> None:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    Image.open(folder / "0.png").save(folder / "0.png", exif=exif)


def _sidecar(folder: Path) -> None:
    (folder / "0.txt").write_text("ignored")


def _uncaptioned(folder: Path) -> None:
    tiny.picture(9).save(folder / "9.png")


def _small(folder: Path) -> None:
    tiny.picture(0).resize((8, 30)).save(folder / "0.png")


@pytest.mark.parametrize(
    ("plant", "finding"),
    [
        (_corrupt, ("corrupt", "1.png")),
        (_twin, ("duplicate", "3.png")),
        (_turned, ("exif-rotation", "0.png")),
        (_sidecar, ("captions-ignored", "0.txt")),
        (_uncaptioned, ("caption", "metadata.jsonl")),
        (_small, ("tiny", "0.png")),
    ],
)
def test_each_fault_of_captioned_images_is_found(
    tmp_path: Path, plant: Callable[[Path], None], finding: tuple[str, str]
) -> None:
    folder = tiny.captioned_folder(tmp_path / "data")
    plant(folder)
    assert finding in codes(folder)


def test_captions_without_the_trigger_are_named(captioned: Path) -> None:
    assert codes(captioned, trigger="RED") == {("no-trigger", f"{n}.png") for n in (1, 2)}


def test_faults_of_masks_are_all_found(tmp_path: Path) -> None:
    folder = tiny.masked_folder(tmp_path / "data", images=6)
    (folder / "labels.json").write_text('{"0": "outside", "1": "object"}')
    (folder / "masks" / "1.png").unlink()
    (folder / "images" / "2.png").unlink()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "masks" / "3.png")
    (folder / "masks" / "4.png").write_bytes(b"no picture")
    found = codes(folder)
    assert {
        ("mask", "images/1.png"), ("mask", "masks/2.png"), ("mask-size", "masks/3.png"),
        ("mask", "masks/4.png"), ("mask-value", "masks/0.png"), ("mask-value", "masks/5.png"),
    } <= found  # fmt: skip


def test_a_subject_needs_images(tmp_path: Path) -> None:
    tiny.picture(1).save(tmp_path / "a.png")
    assert lint(tmp_path, min_px=16).kind == "subject"
    with pytest.raises(DataError, match="no folder"):
        lint(tmp_path / "none")


def test_the_exit_code_tells(tmp_path: Path, captioned: Path) -> None:
    assert run_cli("data", "check", captioned, "--min-px", "16").code == 0
    assert run_cli("data", "check", captioned).code == 0
    assert run_cli("data", "check", captioned, "--strict").code == 2
    folder = tiny.captioned_folder(tmp_path / "data")
    _corrupt(folder)
    done = run_cli("data", "check", folder, "--json")
    assert done.code == 2
    answer = json.loads(done.out)
    assert answer["errors"] == 1
    assert {"code", "level", "file", "message"} == set(answer["findings"][0])
