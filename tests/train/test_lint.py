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
from tests.train.test_masks import save_mask
from train.dataset import read_captions
from train.lint import EXIF_ORIENTATION, lint
from train.masks import IGNORED, read_masks
from train.subject import read_subject


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


def test_masks_without_a_counted_pixel_are_named(tmp_path: Path) -> None:
    folder = tiny.masked_folder(tmp_path)
    save_mask(folder / "masks" / "1.png", IGNORED)
    assert codes(folder) == {("mask-blank", "masks/1.png")}


def _unlisted(folder: Path) -> None:
    (folder / "metadata.jsonl").unlink()
    for number in range(4):
        (folder / f"{number}.txt").write_text("a red apple")


def test_captions_without_an_image_or_for_two_are_named(tmp_path: Path) -> None:
    folder = tiny.captioned_folder(tmp_path)
    _unlisted(folder)
    (folder / "lost.txt").write_text("a blue apple")
    tiny.picture(8).save(folder / "2.jpg")
    (folder / "moving.gif").touch()
    assert codes(folder) == {
        ("lost-caption", "lost.txt"), ("shared-caption", "2.txt"), ("unread", "moving.gif"),
    }  # fmt: skip


def test_every_faulty_line_is_named(tmp_path: Path) -> None:
    folder = tiny.captioned_folder(tmp_path, images=3)
    good = [json.dumps({"file_name": f"{name}.png", "text": "x"}) for name in ("no", "1")]
    (folder / "metadata.jsonl").write_text("\n".join([good[0], '{"file_name": "0.png"}', "oops", good[1]]))
    messages = [finding.message for finding in lint(folder, min_px=16).findings]
    assert len(messages) == 4
    for part in (
        "jsonl:1 names 'no.png'",
        "jsonl:2 has no 'text'",
        "jsonl:3 is not JSON",
        "2.png has no cap",
    ):
        assert any(part in message for message in messages)


# -- the same answer as training ---------------------------------------------------------------


def in_a_subfolder(folder: Path) -> None:
    tiny.captioned_folder(folder / "images")
    lines = [json.loads(line) for line in (folder / "images" / "metadata.jsonl").read_text().splitlines()]
    (folder / "images" / "metadata.jsonl").unlink()
    named = [line | {"file_name": f"images/{line['file_name']}"} for line in lines]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, named)))


def corrupt_beside_a_test_split(folder: Path) -> None:
    tiny.captioned_folder(folder)
    tiny.captioned_folder(folder / "test")
    _corrupt(folder)


def empty_test_split(folder: Path) -> None:
    tiny.captioned_folder(folder / "train")
    (folder / "test").mkdir()


def one_class(folder: Path) -> None:
    tiny.masked_folder(folder)
    for path in (folder / "masks").iterdir():
        save_mask(path, 0)


def black_and_white(folder: Path) -> None:
    tiny.masked_folder(folder, classes=2)
    for path in (folder / "masks").iterdir():
        Image.fromarray(np.asarray(Image.open(path)) * 255).save(path)


def class_in_the_test_split_alone(folder: Path) -> None:
    tiny.masked_folder(folder / "train", classes=2)
    tiny.masked_folder(folder / "test", classes=3)


def nothing_counted(folder: Path) -> None:
    tiny.masked_folder(folder)
    (folder / "labels.json").write_text('{"0": null, "1": null, "2": null, "3": "a", "4": "b"}')


def nothing_counted_in_the_test_split(folder: Path) -> None:
    tiny.masked_folder(folder / "train")
    tiny.masked_folder(folder / "test")
    for path in (folder / "test" / "masks").iterdir():
        save_mask(path, IGNORED)


def hidden_and_upper_case(folder: Path) -> None:
    tiny.masked_folder(folder)
    (folder / "masks" / "._0.png").write_bytes(b"of a Mac")
    (folder / "masks" / "1.png").rename(folder / "masks" / "1.PNG")


def one_mask_for_two(folder: Path) -> None:
    tiny.masked_folder(folder)
    tiny.picture(9).save(folder / "images" / "0.jpg")


def two_masks_for_one(folder: Path) -> None:
    tiny.masked_folder(folder)
    save_mask(folder / "masks" / "0.PNG", 0)


def subject_in_a_split(folder: Path) -> None:
    (folder / "train").mkdir(parents=True)
    tiny.picture(1).save(folder / "train" / "a.png")


@pytest.mark.parametrize(
    ("make", "read", "good"),
    [
        (in_a_subfolder, read_captions, True),
        (corrupt_beside_a_test_split, read_captions, False),
        (empty_test_split, read_captions, False),
        (one_class, read_masks, False),
        (black_and_white, read_masks, False),
        (class_in_the_test_split_alone, read_masks, False),
        (nothing_counted, read_masks, False),
        (nothing_counted_in_the_test_split, read_masks, False),
        (hidden_and_upper_case, read_masks, True),
        (one_mask_for_two, read_masks, False),
        (two_masks_for_one, read_masks, False),
        (subject_in_a_split, read_subject, False),
    ],
)
def test_it_answers_as_training_does(
    tmp_path: Path, make: Callable[[Path], None], read: Callable[[Path], object], good: bool
) -> None:
    make(tmp_path / "data")
    if good:
        read(tmp_path / "data")
        assert lint(tmp_path / "data", min_px=16).errors == 0
        assert lint(tmp_path / "data", min_px=16).images == 4
        return
    with pytest.raises(DataError):
        read(tmp_path / "data")
    try:
        errors = lint(tmp_path / "data", min_px=16).errors
    except DataError:
        errors = 1
    assert errors


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
