from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hubctl.errors import DataError
from tests.train import tiny
from tests.train.test_dataset import rewrite
from train.lint import lint
from train.masks import IGNORED, open_mask, parse_labels, read_masks


def save_mask(path: Path, value: int, side_px: int = tiny.SIDE_PX) -> None:
    Image.fromarray(np.full((side_px, side_px), value, np.uint8)).save(path)


MASK_FAULTS: list[tuple[str, Callable[[Path], object], str]] = [
    ("no images", lambda d: (d / "images").rename(d / "imgs"), "images"),
    ("no masks", lambda d: (d / "masks").rename(d / "labels"), "there is no folder"),
    ("no mask", lambda d: (d / "masks/1.png").unlink(), "1.png has no mask"),
    ("no image", lambda d: (d / "images/1.png").unlink(), "1.png has no image"),
    (
        "wrong size",
        lambda d: save_mask(d / "masks/1.png", 0, 16),
        "1.png has 16 x 16 pixels, its image 32 x 32",
    ),
    ("colour mask", lambda d: tiny.picture(0).save(d / "masks/1.png"), "1.png is a RGB picture, not a mask"),
    ("corrupt mask", lambda d: (d / "masks/1.png").write_bytes(b"no"), "1.png is not a readable image"),
    ("strange value", lambda d: save_mask(d / "masks/1.png", 7), "1.png has the value 7"),
    (
        "gap in labels",
        lambda d: rewrite(d / "labels.json", '{"0": "a", "2": "b"}'),
        "has the value 1, which labels.json does not name",
    ),
    ("too large", lambda d: rewrite(d / "labels.json", '{"0": "a", "256": "b"}'), "256 is no pixel value"),
    ("bad colour", lambda d: rewrite(d / "labels.json", '{"#f00": "a"}'), "#f00 is no colour"),
    ("both", lambda d: rewrite(d / "labels.json", '{"#ff0000": "a", "1": "b"}'), "not both"),
    (
        "bad labels",
        lambda d: rewrite(d / "labels.json", '{"pet": 0}'),
        "labels.json does not name the classes",
    ),
    ("labels not JSON", lambda d: rewrite(d / "labels.json", "pet"), "labels.json does not name the classes"),
    ("too deep", lambda d: rewrite(d / "labels.json", "[" * 100_000), "does not name the classes"),
    (
        "half a character",
        lambda d: rewrite(d / "labels.json", '{"0": "a", "1": "\\ud83d", "2": "c"}'),
        r"labels.json has '\ud83d', which is no character",
    ),
    ("a list", lambda d: rewrite(d / "labels.json", '["pet"]'), "labels.json does not name the classes"),
]


@pytest.mark.parametrize(("_name", "damage", "message"), MASK_FAULTS, ids=[c[0] for c in MASK_FAULTS])
def test_mask_faults_name_the_file(
    tmp_path: Path, _name: str, damage: Callable[[Path], object], message: str
) -> None:
    folder = tiny.masked_folder(tmp_path / "data")
    rewrite(folder / "labels.json", '{"0": "outside", "1": "border", "2": "inside"}')
    damage(folder)
    with pytest.raises(DataError) as caught:
        read_masks(folder)
    assert message in caught.value.message
    assert caught.value.hint


def test_masks_of_one_class_are_refused(tmp_path: Path) -> None:
    folder = tiny.masked_folder(tmp_path)
    for path in (folder / "masks").iterdir():
        save_mask(path, 0)
    with pytest.raises(DataError, match="one class only"):
        read_masks(folder)


def test_classes_come_from_the_masks_without_labels(tmp_path: Path) -> None:
    folder = tiny.masked_folder(tmp_path)
    assert read_masks(folder).labels == {0: "class 0", 1: "class 1", 2: "class 2"}
    assert read_masks(folder, {0: "a", 1: "b", 2: "c"}).labels == {0: "a", 1: "b", 2: "c"}


def test_ignored_pixels_belong_to_no_class(tmp_path: Path) -> None:
    folder = tiny.masked_folder(tmp_path)
    save_mask(folder / "masks" / "0.png", 255)
    assert len(read_masks(folder).labels) == 3


@pytest.mark.parametrize("mode", ["L", "P", "I;16"])
def test_masks_keep_their_numbers(tmp_path: Path, mode: str) -> None:
    values = np.array([[0, 1], [2, 255]], np.uint16 if mode == "I;16" else np.uint8)
    image = Image.fromarray(values)
    if mode == "P":
        image.putpalette([number // 3 for number in range(768)])
    image.save(tmp_path / "mask.png")
    assert open_mask(tmp_path / "mask.png").tolist() == [[0, 1], [2, 255]]


def test_a_deep_mask_with_large_values_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 300]], np.uint16)).save(tmp_path / "mask.png")
    with pytest.raises(DataError, match="has the value 300"):
        open_mask(tmp_path / "mask.png")


# -- what pixels mean --------------------------------------------------------------------------


def write_mask(path: Path, values: list[list[object]], dtype: type = np.uint8) -> None:
    Image.fromarray(np.array(values, dtype)).save(path)


def test_values_and_colours_become_class_numbers(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    write_mask(path, [[0, 255], [128, 7]])
    labels = parse_labels({"255": "pet", "0": "ground", "128": "ground", "7": None})
    assert labels.names == {0: "ground", 1: "pet"}
    assert open_mask(path, labels).tolist() == [[0, 1], [0, IGNORED]]
    red, black, white = [255, 0, 0], [0, 0, 0], [255, 255, 255]
    write_mask(path, [[red, black], [white, red]])
    labels = parse_labels({"#FF0000": "pet", "#000000": "ground", "#ffffff": None})
    assert labels.names == {0: "pet", 1: "ground"}
    assert open_mask(path, labels).tolist() == [[0, 1], [IGNORED, 0]]
    with pytest.raises(DataError, match="has the colour #ffffff, which"):
        open_mask(path, parse_labels({"#ff0000": "pet", "#000000": "ground"}))


def test_a_palette_mask_may_be_read_by_its_colours(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    image = Image.fromarray(np.array([[0, 1]], np.uint8), "L").convert("P")
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.save(path)
    assert open_mask(path, parse_labels({"#c86432": "a", "#0a141e": "b"})).tolist() == [[1, 0]]


def test_the_refusal_of_a_colour_mask_gives_the_labels_to_write(tmp_path: Path) -> None:
    folder = tiny.masked_folder(tmp_path)
    for path in (folder / "masks").iterdir():
        grey = np.asarray(Image.open(path))
        Image.fromarray(np.stack([grey * 100, grey * 0, grey * 0], -1)).save(path)
    with pytest.raises(DataError) as caught:
        read_masks(folder)
    hint = caught.value.hint or ""
    rewrite(folder / "labels.json", hint[hint.index("{") :])
    data = read_masks(folder)
    assert data.labels == {0: "class 0", 1: "class 1", 2: "class 2"}
    assert set(np.unique(data.train[0].classes())) == {0, 1, 2}


def test_black_and_white_masks_need_one_line(tmp_path: Path) -> None:
    folder = tiny.masked_folder(tmp_path, classes=2)
    for path in (folder / "masks").iterdir():
        Image.fromarray(np.asarray(Image.open(path)) * 255).save(path)
    with pytest.raises(DataError) as caught:
        read_masks(folder)
    hint = caught.value.hint or ""
    rewrite(folder / "labels.json", hint[hint.index("{") :])
    assert read_masks(folder).labels == {0: "background", 1: "object"}
    assert lint(folder, min_px=16).errors == 0


@given(
    st.dictionaries(st.integers(0, 255).map(str), st.one_of(st.none(), st.sampled_from("abc")), min_size=1)
)
def test_equal_names_are_one_class_and_null_is_none(entries: dict[str, str | None]) -> None:
    labels = parse_labels(entries)
    assert sorted(labels.names) == list(range(len(set(entries.values()) - {None})))
    for value, number in labels.values.items():
        assert labels.names.get(number) == entries[str(value)]


# -- Oxford-IIIT Pet ---------------------------------------------------------------------------


def pet_folder(folder: Path) -> Path:
    """The layout of the data set, as its two archives unpack."""
    trimaps = folder / "annotations" / "trimaps"
    trimaps.mkdir(parents=True)
    (folder / "images").mkdir()
    mask = np.full((tiny.SIDE_PX, tiny.SIDE_PX), 2, np.uint8)
    mask[8:24, 8:24] = 3
    mask[12:20, 12:20] = 1
    names = ["Abyssinian_1", "Abyssinian_2", "beagle_1", "beagle_2"]
    for number, name in enumerate(names):
        tiny.picture(number).save(folder / "images" / f"{name}.jpg")
        Image.fromarray(mask).save(trimaps / f"{name}.png")
    (folder / "images" / "Abyssinian_1.mat").write_bytes(b"they left some")
    head = "#Image CLASS-ID SPECIES BREED ID\n"
    (folder / "annotations" / "trainval.txt").write_text(head + "".join(f"{n} 1 1 1\n" for n in names[:3]))
    (folder / "annotations" / "test.txt").write_text(f"{names[3]} 1 1 1\n")
    return folder


def test_the_pet_data_set_is_read_as_it_unpacks(tmp_path: Path) -> None:
    folder = pet_folder(tmp_path / "pets")
    data = read_masks(folder)
    assert data.labels == {0: "pet", 1: "background", 2: "border"}
    assert [item.path.stem for item in data.test] == ["beagle_2"]
    assert len(data.train) == 3
    middle = data.train[0].classes()
    assert (middle[16, 16], middle[0, 0], middle[9, 9]) == (0, 1, 2)
    found = lint(folder, min_px=16)
    assert (found.kind, found.images, found.errors) == ("masks", 4, 0)
    assert set(found.classes) == {"pet", "background", "border"}


def test_its_border_may_be_left_out_or_counted_as_pet(tmp_path: Path) -> None:
    folder = pet_folder(tmp_path / "pets")
    before = read_masks(folder).sha256
    rewrite(folder / "labels.json", json.dumps({"1": "pet", "2": "background", "3": None}))
    assert read_masks(folder).train[0].classes()[9, 9] == IGNORED
    rewrite(folder / "labels.json", json.dumps({"1": "pet", "2": "background", "3": "pet"}))
    merged = read_masks(folder)
    assert merged.labels == {0: "pet", 1: "background"}
    assert merged.sha256 != before


def test_what_its_lists_name_must_be_there(tmp_path: Path) -> None:
    folder = pet_folder(tmp_path / "pets")
    (folder / "images" / "beagle_1.jpg").unlink()
    with pytest.raises(DataError, match=r"trainval\.txt:4 names beagle_1, but .*beagle_1\.jpg is missing"):
        read_masks(folder)
    assert lint(folder, min_px=16).errors == 1
