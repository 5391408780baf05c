from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hubctl.errors import DataError
from tests.train import tiny
from train.dataset import fitted, open_image, read_captions
from train.lint import lint
from train.subject import read_subject


def rewrite(path: Path, text: str) -> None:
    path.write_text(text)


CAPTION_FAULTS: list[tuple[str, Callable[[Path], object], str]] = [
    ("no folder", lambda d: d.rename(d.with_name("elsewhere")), "there is no folder"),
    ("no caption", lambda d: tiny.picture(9).save(d / "new.png"), "new.png has no caption"),
    ("corrupt image", lambda d: (d / "1.png").write_bytes(b"\x89PNG no"), "1.png is not a readable image"),
    (
        "cut image",
        lambda d: (d / "1.png").write_bytes((d / "1.png").read_bytes()[:-40]),
        "1.png is not a readable image",
    ),
    ("image gone", lambda d: (d / "2.png").unlink(), "metadata.jsonl:3 names '2.png', which is not in"),
    ("not JSON", lambda d: rewrite(d / "metadata.jsonl", "{oops\n"), "metadata.jsonl:1 is not JSON"),
    ("a list", lambda d: rewrite(d / "metadata.jsonl", "[1]\n"), "metadata.jsonl:1 is not a JSON object"),
    ("empty", lambda d: rewrite(d / "metadata.jsonl", "\n"), "metadata.jsonl is empty"),
    (
        "no text",
        lambda d: rewrite(d / "metadata.jsonl", '{"file_name": "0.png", "txt": "a"}'),
        "metadata.jsonl:1 has no 'text'",
    ),
    (
        "blank text",
        lambda d: rewrite(d / "metadata.jsonl", '{"file_name": "0.png", "text": "  "}'),
        "metadata.jsonl:1 has no 'text'",
    ),
    (
        "twice",
        lambda d: rewrite(d / "metadata.jsonl", '{"file_name": "0.png", "text": "a"}\n' * 2),
        "metadata.jsonl:2 names '0.png' again (first in line 1)",
    ),
    (
        "outside",
        lambda d: rewrite(d / "metadata.jsonl", '{"file_name": "../x.png", "text": "a"}'),
        "names '../x.png', outside the folder",
    ),
    (
        "half a character",
        lambda d: rewrite(d / "metadata.jsonl", '{"file_name": "0.png", "text": "red \\ud83d"}'),
        r"metadata.jsonl:1 has '\ud83d', which is no character",
    ),
    (
        "a zero in a name",
        lambda d: rewrite(d / "metadata.jsonl", '{"file_name": "0\\u0000.png", "text": "a"}'),
        r"metadata.jsonl:1 has '\x00', which is no character",
    ),
    (
        "a long name",
        lambda d: rewrite(d / "metadata.jsonl", json.dumps({"file_name": "0" * 300, "text": "a"})),
        "metadata.jsonl:1 names a file that cannot be: File name too long",
    ),
    ("too deep", lambda d: rewrite(d / "metadata.jsonl", "[" * 100_000), "metadata.jsonl:1 is not JSON"),
    (
        "Latin-1",
        lambda d: (d / "metadata.jsonl").write_bytes(b'{"file_name": "0.png", "text": "caf\xe9"}'),
        "metadata.jsonl is not UTF-8 text",
    ),
]


@pytest.mark.parametrize(("_name", "damage", "message"), CAPTION_FAULTS, ids=[c[0] for c in CAPTION_FAULTS])
def test_caption_faults_name_the_file(
    tmp_path: Path, _name: str, damage: Callable[[Path], object], message: str
) -> None:
    folder = tiny.captioned_folder(tmp_path / "data")
    damage(folder)
    with pytest.raises(DataError) as caught:
        read_captions(folder)
    assert message in caught.value.message
    assert caught.value.hint


def test_names_in_any_spelling_mean_the_same_file(tmp_path: Path) -> None:
    folder = tiny.captioned_folder(tmp_path / "data", images=4)
    (folder / "sub").mkdir()
    (tmp_path / "link").symlink_to(folder)
    names = [str(folder.absolute() / "0.png"), "./1.png", "sub/../2.png", str(tmp_path / "link" / "3.png")]
    lines = [json.dumps({"file_name": name, "text": "a"}) for name in names]
    rewrite(folder / "metadata.jsonl", "\n".join(lines))
    relative = Path(os.path.relpath(folder))
    for place in (folder, relative):
        items = read_captions(place).train
        assert [item.path for item in items] == [place / f"{number}.png" for number in range(4)]
        assert lint(place, min_px=16).errors == 0
    rewrite(folder / "metadata.jsonl", "\n".join(lines + lines[2:3]))
    with pytest.raises(DataError, match=r"jsonl:5 names '2\.png' again \(first in line 3\)"):
        read_captions(folder)


def test_a_caption_may_hold_other_ends_of_lines(tmp_path: Path) -> None:
    folder = tiny.captioned_folder(tmp_path, images=2)
    text = "red\u2028apple\x85"
    lines = [json.dumps({"file_name": f"{n}.png", "text": text}, ensure_ascii=False) for n in range(2)]
    (folder / "metadata.jsonl").write_bytes("\r\n".join(lines).encode())
    assert {item.caption for item in read_captions(folder).train} == {"red\u2028apple"}


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-16-le", "utf-16-be"])
def test_the_hint_for_another_encoding_works_as_typed(tmp_path: Path, encoding: str) -> None:
    tiny.picture(0).save(tmp_path / "a b.png")
    (tmp_path / "a b.txt").write_bytes("ein äpfel".encode(encoding))
    with pytest.raises(DataError, match="is not UTF-8 text") as caught:
        read_captions(tmp_path)
    _, _, command = (caught.value.hint or "").partition(": ")
    subprocess.run(command, shell=True, check=True)
    assert [item.caption for item in read_captions(tmp_path).train] == ["ein äpfel"]


def test_empty_folders_and_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty holds no images"):
        read_captions(tmp_path / "empty")
    with pytest.raises(DataError, match="empty holds no images"):
        read_subject(tmp_path / "empty")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file is not a folder"):
        read_captions(tmp_path / "file")


def test_sidecar_captions(tmp_path: Path) -> None:
    tiny.picture(0).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png has no caption"):
        read_captions(tmp_path)
    (tmp_path / "a.txt").write_text(" \n")
    with pytest.raises(DataError, match=r"a\.txt is empty"):
        read_captions(tmp_path)
    (tmp_path / "a.txt").write_text("\ufeffa red\napple\n", encoding="utf-8")
    assert [item.caption for item in read_captions(tmp_path).train] == ["a red apple"]


def test_splits_are_used_when_they_are_there(tmp_path: Path) -> None:
    tiny.captioned_folder(tmp_path / "train", images=3)
    tiny.captioned_folder(tmp_path / "test", images=2)
    data = read_captions(tmp_path)
    assert (len(data.train), len(data.test)) == (3, 2)
    assert {item.path.parent.name for item in data.test} == {"test"}


def test_the_hash_follows_bytes_and_captions_but_not_the_place(tmp_path: Path) -> None:
    first = read_captions(tiny.captioned_folder(tmp_path / "a")).sha256
    assert read_captions(tiny.captioned_folder(tmp_path / "b")).sha256 == first
    metadata = tmp_path / "b" / "metadata.jsonl"
    metadata.write_text(metadata.read_text().replace("red", "blue"))
    changed = read_captions(tmp_path / "b").sha256
    tiny.picture(50).save(tmp_path / "a" / "0.png")
    assert len({first, changed, read_captions(tmp_path / "a").sha256}) == 3


def test_pictures_are_upright_and_on_white(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    clear.save(tmp_path / "clear.png")
    assert open_image(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by a quarter
    Image.new("RGB", (8, 4)).save(tmp_path / "turned.jpg", exif=exif)
    assert open_image(tmp_path / "turned.jpg").size == (4, 8)


def test_greys_of_16_bits_keep_their_shades(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    for dtype in (np.uint16, np.int32):  # modes I;16 and I
        Image.fromarray(np.array([[0, 0x4000, 0xFFFF]], dtype)).save(
            path, "PNG" if dtype is np.uint16 else "TIFF"
        )
        assert np.asarray(open_image(path))[0, :, 1].tolist() == [0, 64, 255]
    Image.fromarray(np.array([[0, 90, 255]], np.int32)).save(path, "TIFF")
    assert np.asarray(open_image(path))[0, :, 1].tolist() == [0, 90, 255]


@pytest.mark.parametrize("pixels", [np.array([[0.5, 300]], np.float32), np.array([[0, 1 << 20]], np.int32)])
def test_pixels_that_are_no_colours_are_refused(tmp_path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(tmp_path / "a.png", "TIFF")
    with pytest.raises(DataError, match=r"a\.png cannot be shown: its pixels") as caught:
        open_image(tmp_path / "a.png")
    assert "8-bit PNG" in (caught.value.hint or "")


def test_the_middle_square_is_cut_and_resized() -> None:
    wide = Image.new("RGB", (64, 32), "red")
    wide.paste("blue", (16, 0, 48, 32))
    pixels = fitted(wide, (16, 16))
    assert pixels.shape == (16, 16, 3)
    # Resampling lets a little red in at the two sides.
    assert (pixels[:, 4:-4] == (0, 0, 255)).all()
    assert fitted(wide, (16, 8)).shape == (8, 16, 3)
