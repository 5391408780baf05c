"""Training data on disk: read, checked file by file, and hashed, before any model is loaded.

DIR/*.png + DIR/metadata.jsonl {"file_name", "text"}, or a .txt beside each image; alone, or as two splits,
DIR/train and DIR/test: the first trains, the second judges. Images with masks are in `train.masks`, those of
one subject in `train.subject`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
from collections.abc import Container, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubctl.errors import DataError
from hubctl.images import in_rgb

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
METADATA = "metadata.jsonl"


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionedImage:
    """One picture and what it shows."""

    path: Path
    caption: str


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionData:
    """Data for text-to-image."""

    train: tuple[CaptionedImage, ...]
    test: tuple[CaptionedImage, ...]
    sha256: str
    watched: tuple[CaptionedImage, ...] = ()
    """Held out of `train`, to see whether training overfits."""


def is_captioned(folder: Path) -> bool:
    """Whether the folder, or its split to train on, holds captions."""
    part, _ = splits(folder)
    return (part / METADATA).is_file() or any(
        path.with_suffix(".txt").is_file() for path in list_images(part)
    )


def read_captions(folder: Path) -> CaptionData:
    """Read a folder of captioned images, or its `train` and `test` splits.

    Raises:
        DataError: the folder, a caption or an image cannot be used; the message names the file.
    """
    train_folder, test_folder = splits(folder)
    train = _read_captions(train_folder)
    test = _read_captions(test_folder) if test_folder else ()
    sha256 = fingerprint(folder, ((item.path, item.caption) for item in (*train, *test)))
    return CaptionData(train=train, test=test, sha256=sha256)


def open_image(path: Path) -> Image.Image:
    """The picture, upright, in RGB on white, fully decoded.

    Raises:
        DataError: it is no image, cut short, or has pixels that are no colours.
    """
    image = decoded(path)
    try:
        return in_rgb(image)
    except ValueError as error:
        raise DataError(f"{path} cannot be shown: {error}", hint="save it as an 8-bit PNG") from error


def fitted(image: Image.Image, size: tuple[int, int]) -> NDArray[np.uint8]:
    """The middle of the picture, resized to width and height: uint8 (height, width, 3)."""
    import numpy as np
    from PIL import Image, ImageOps

    return np.asarray(ImageOps.fit(image, size, Image.Resampling.LANCZOS))


def decoded(path: Path) -> Image.Image:
    """The picture as it is stored, upright.

    Raises:
        DataError: it is no image, or cut short.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            image.load()
            return ImageOps.exif_transpose(image)
    # Pillow answers a damaged file with whatever its decoder met: SyntaxError and ValueError too.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{path} is not a readable image: {error}",
            hint=f"replace it, or remove it: rm {shlex.quote(str(path))}",
        ) from error


def splits(folder: Path) -> tuple[Path, Path | None]:
    """The folder to train on, and the one to judge on."""
    require_folder(folder)
    train, test = folder / "train", folder / "test"
    return (train if train.is_dir() else folder), (test if test.is_dir() else None)


def require_folder(folder: Path, *, flag: str = "--data") -> None:
    """Raise `DataError` unless the folder is there."""
    if not folder.exists():
        raise DataError(f"there is no folder {folder}", hint=f"give the folder of your images with {flag}")
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder", hint=f"give the folder: {flag} {folder.parent}")


def list_images(folder: Path) -> tuple[Path, ...]:
    """The image files of a folder, by name."""
    return tuple(
        sorted(
            path
            for path in folder.iterdir()
            if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file() and path.name[0] != "."
        )
    )


def images_in(folder: Path) -> tuple[Path, ...]:
    """The image files of a folder, by name.

    Raises:
        DataError: there is no folder, or none in it.
    """
    require_folder(folder)
    images = list_images(folder)
    if not images:
        raise DataError(
            f"{folder} holds no images ({', '.join(IMAGE_SUFFIXES)})",
            hint=f"copy your images there: cp PICTURES/* {shlex.quote(str(folder))}/",
        )
    return images


# -- captions ----------------------------------------------------------------------------------


Faults = list[tuple[Path, DataError]]
"""What is wrong, and with which file."""

_EXAMPLE = '{"file_name": "a.png", "text": "a red apple"}'


def read_caption_items(folder: Path) -> tuple[tuple[CaptionedImage, ...], Faults]:
    """Every image with its caption, and every fault, instead of the first one alone."""
    metadata = folder / METADATA
    if metadata.is_file():
        return _metadata_items(metadata)
    items: list[CaptionedImage] = []
    faults: Faults = []
    try:
        images = images_in(folder)
    except DataError as fault:
        return (), [(folder, fault)]
    for path in images:
        try:
            items.append(_sidecar_item(path))
        except DataError as fault:
            faults.append((path, fault))
    return tuple(items), faults


def require_text(text: str, where: str) -> None:
    """Raise `DataError` for what JSON can say and UTF-8 cannot hold: halves of characters; and for zeros."""
    if strange := re.search("[\0\ud800-\udfff]", text):
        raise DataError(
            f"{where} has {strange[0]!r}, which is no character",
            hint="write the character itself, in UTF-8, or leave it out",
        )


def _read_captions(folder: Path) -> tuple[CaptionedImage, ...]:
    items, faults = read_caption_items(folder)
    for _, fault in faults:
        raise fault
    for item in items:
        open_image(item.path)
    return items


def _metadata_items(metadata: Path) -> tuple[tuple[CaptionedImage, ...], Faults]:
    try:
        # Not splitlines: a caption may hold what else ends a line (U+2028).
        lines = read_text(metadata).split("\n")
    except DataError as fault:
        return (), [(metadata, fault)]
    items: dict[Path, CaptionedImage] = {}
    faults: Faults = []
    faulty: list[str] = []
    first: dict[Path, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{metadata}:{number}"
        try:
            item = _metadata_item(line, where, metadata.parent)
            if item.path in items:
                name = item.path.relative_to(metadata.parent).as_posix()
                raise DataError(
                    f"{where} names {name!r} again (first in line {first[item.path]})",
                    hint="keep one line for each image",
                )
        except DataError as fault:
            faults.append((metadata, fault))
            faulty.append(line)
            continue
        items[item.path], first[item.path] = item, number
    if not items and not faults:
        hint = f"write a line for each image: {_EXAMPLE}"
        return (), [(metadata, DataError(f"{metadata} is empty", hint=hint))]
    return tuple(items.values()), [*faults, *_uncaptioned(metadata, items, faulty)]


def _metadata_item(line: str, where: str, folder: Path) -> CaptionedImage:
    try:
        entry: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON: {error}", hint=f"write it like {_EXAMPLE}") from error
    if not isinstance(entry, dict):
        raise DataError(f"{where} is not a JSON object", hint=f"write it like {_EXAMPLE}")
    for key in ("file_name", "text"):
        if not isinstance(entry.get(key), str) or not entry[key].strip():
            raise DataError(f"{where} has no {key!r}", hint=f"write it like {_EXAMPLE}")
        require_text(entry[key], f"{key!r} in {where}")
    return CaptionedImage(path=_named(folder, entry["file_name"], where), caption=entry["text"].strip())


def _named(folder: Path, name: str, where: str) -> Path:
    """The file in the folder that is meant, also by an absolute name or one with dots, in one spelling."""
    home = Path(os.path.normpath(folder.absolute()))
    path = Path(os.path.normpath(home / name))
    try:
        if not path.is_relative_to(home):  # unless the two say the same folder in other words
            home, path = home.resolve(), path.resolve()
        inside, there = path.resolve().is_relative_to(home.resolve()), path.is_file()
    except OSError as error:
        raise DataError(
            f"{where} names a file that cannot be: {error.strerror}", hint="correct the name"
        ) from error
    if not inside:
        raise DataError(
            f"{where} names {name!r}, outside the folder",
            hint=f"keep the images in {folder}",
        )
    if not there:
        raise DataError(
            f"{where} names {name!r}, which is not in {folder}",
            hint="add the image, or delete the line",
        )
    return folder / path.relative_to(home)


def _uncaptioned(metadata: Path, captioned: Container[Path], faulty: Iterable[str]) -> Faults:
    """The images that no line names, also none of the faulty lines, of which it is said already."""
    named = {word for line in faulty for word in line.split('"')}
    missing = [
        path for path in list_images(metadata.parent) if path not in captioned and path.name not in named
    ]
    if not missing:
        return []
    more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
    entry = json.dumps({"file_name": missing[0].name, "text": "what it shows"})
    fault = DataError(
        f"{missing[0]} has no caption in {metadata}{more}",
        hint=f"add the line {entry}, or remove the image",
    )
    return [(metadata, fault)]


def _sidecar_item(path: Path) -> CaptionedImage:
    text = path.with_suffix(".txt")
    hint = f"write what it shows: echo 'a red apple' > {shlex.quote(str(text))}"
    if not text.is_file():
        raise DataError(f"{path} has no caption: neither {text.name} nor {METADATA} is there", hint=hint)
    caption = " ".join(read_text(text).split())
    if not caption:
        raise DataError(f"{text} is empty", hint=hint)
    return CaptionedImage(path=path, caption=caption)


def read_text(path: Path) -> str:
    """A text file in UTF-8, with or without a byte order mark.

    Raises:
        DataError: it is something else.
    """
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
        if "\0" in text:  # half of each character, in UTF-16
            raise ValueError("it has zeros")
    except ValueError as error:
        encoding = "UTF-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "ISO-8859-1"
        if b"\0" in data[:2]:
            encoding = "UTF-16BE" if data[0] == 0 else "UTF-16LE"
        old, new = shlex.quote(str(path)), shlex.quote(f"{path}.new")
        raise DataError(
            f"{path} is not UTF-8 text",
            hint=f"it looks like {encoding}: iconv -f {encoding} -t UTF-8 {old} > {new} && mv {new} {old}",
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def fingerprint(folder: Path, items: Iterable[tuple[Path, str]], extra: str = "") -> str:
    """One hash for a data set: over each file's place, bytes and caption, in order of place."""
    total = hashlib.sha256(extra.encode())
    lines = sorted((path.relative_to(folder).as_posix(), text, path) for path, text in items)
    for name, text, path in lines:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        total.update(f"{name}\0{digest}\0{text}\n".encode())
    return total.hexdigest()
