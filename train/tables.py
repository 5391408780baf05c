"""Datasets of the Hub (Parquet, Arrow, CSV, imagefolder, ...) made into the folders that trainings read.

Image files come out byte for byte as they are in the dataset; masks alone are made PNG where they are not.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from hubctl.errors import DataError
from train.dataset import METADATA

CAPTIONS = ("text", "caption", "captions", "prompt", "description", "txt")
MASKS = ("mask", "annotation", "label", "segmentation", "segmentation_mask", "labels")
TESTS = ("test", "validation", "val")
"""Splits that judge, the first that is there."""
# MPO is what telephones write: a JPEG with more pictures behind it.
_SUFFIXES = {"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "WEBP": ".webp", "BMP": ".bmp"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Columns:
    """What of each row is written."""

    image: str
    caption: str | None
    mask: str | None


def write_dataset(
    source: Path,
    output: Path,
    *,
    split: str | None = None,
    image: str | None = None,
    caption: str | None = None,
    mask: str | None = None,
    limit: int | None = None,
) -> Iterator[tuple[int, int]]:
    """Write a downloaded dataset as images with captions, with masks, or alone; yields rows done, and all.

    Without `split` the training split and one to judge on become `output/train` and `output/test`. Columns
    are found by their kinds and usual names unless they are given. Rows that lack one of these are left out.

    Raises:
        DataError: it is no dataset; a split or column is not there, or holds something else; those that fit
            are named. Or a picture is none that a training reads.
    """
    tables = _tables(source, split)
    total = sum(min(len(table), limit or len(table)) for table in tables.values())
    done = 0
    for name, table in tables.items():
        folder = output / name if len(tables) > 1 else output
        columns = choose_columns(table.features, image=image, caption=caption, mask=mask)
        rows = table.select(range(min(len(table), limit or len(table))))
        for _ in _write(rows, columns, source, folder):
            done += 1
            yield done, total


def choose_columns(
    features: Any, *, image: str | None = None, caption: str | None = None, mask: str | None = None
) -> Columns:
    """The columns to use: those named, else by kind and usual name.

    Raises:
        DataError: a named column is not there or holds something else, or no column holds images.
    """
    from datasets import Image, Value

    listed = ", ".join(features) or "none"
    for name in (image, caption, mask):
        if name is not None and name not in features:
            raise DataError(f"there is no column '{name}'", hint=f"the columns are: {listed}")
    images = [name for name, kind in features.items() if isinstance(kind, Image)]
    texts = [
        n
        for n, kind in features.items()
        if isinstance(kind, Value) and kind.dtype in ("string", "large_string")
    ]
    named = ((image, images, "images"), (caption, texts, "texts"), (mask, images, "images"))
    for name, fitting, what in named:
        if name is not None and name not in fitting:
            those = f"those with {what} are: {', '.join(fitting)}" if fitting else f"none holds {what}"
            raise DataError(f"the column '{name}' holds no {what}", hint=those)
    mask = mask or next((name for name in MASKS if name in images), None)
    image = image or next((name for name in images if name != mask), None)
    if image is None:
        raise DataError(
            "no column holds images", hint=f"the columns are: {listed}; name one with --image-column"
        )
    if caption is None and mask is None:
        caption = next((name for name in CAPTIONS if name in texts), None)
    return Columns(image=image, caption=caption, mask=mask)


def _tables(source: Path, split: str | None) -> dict[str, Any]:
    """The splits to write, by the names of their folders."""
    from datasets import Image, load_dataset
    from datasets.exceptions import DataFilesNotFoundError, DatasetGenerationError

    try:
        found: Any = load_dataset(str(source), cache_dir=str(source.parent / "read"))
    except (DataFilesNotFoundError, DatasetGenerationError, ValueError, FileNotFoundError) as error:
        raise DataError(
            f"it cannot be read as a dataset: {error}",
            hint="look at its files on the registry; --include takes some of them",
        ) from error
    if split is not None:
        if split not in found:
            raise DataError(f"there is no split '{split}'", hint=f"the splits are: {', '.join(found)}")
        chosen = {"train": found[split]}
    else:
        first = "train" if "train" in found else next(iter(found))
        test = next((name for name in TESTS if name in found and name != first), None)
        chosen = {"train": found[first], **({"test": found[test]} if test else {})}
    for name, table in chosen.items():
        for column, kind in table.features.items():
            if isinstance(kind, Image):  # the file itself, not its pixels
                table = table.cast_column(column, Image(decode=False))
        chosen[name] = table
    return chosen


def _write(table: Any, columns: Columns, source: Path, folder: Path) -> Iterator[None]:
    images = folder / "images" if columns.mask else folder
    images.mkdir(parents=True, exist_ok=True)
    if columns.mask:
        (folder / "masks").mkdir()
    lines = []
    for number, row in enumerate(table):
        if not _whole(row, columns):
            continue
        data = _bytes(row[columns.image], source, number)
        path = images / f"{number:06}{_suffix(data, number)}"
        path.write_bytes(data)
        if columns.mask:
            mask = _bytes(row[columns.mask], source, number)
            _write_mask(mask, folder / "masks" / f"{number:06}.png", number)
        if columns.caption:
            caption = row[columns.caption]
            lines.append(json.dumps({"file_name": path.name, "text": caption}, ensure_ascii=False))
        yield
    if lines:
        (folder / METADATA).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _whole(row: dict[str, Any], columns: Columns) -> bool:
    """Whether the row has all that is written of it."""
    caption = row[columns.caption] if columns.caption else "none is asked for"
    pictures = (row[name] for name in (columns.image, columns.mask) if name)
    return bool(caption and caption.strip()) and None not in pictures


def _bytes(value: dict[str, Any], source: Path, number: int) -> bytes:
    """A picture as it lies in the table, in a file beside it, or in an archive (`zip://a.png::train.zip`).

    Raises:
        DataError: the table names a file that did not come with it: it could be any one of this machine.
    """
    if value["bytes"] is not None:
        return bytes(value["bytes"])
    refusal = DataError(
        f"row {number} names {value['path']!r}, which is no file of the dataset",
        hint="look at its files on the registry; --image-column names another column",
    )
    *inside, name = value["path"].split("::")
    try:
        file = (source / name).resolve()
        if not file.is_relative_to(source.parent.resolve()):
            raise refusal
        return _archive(file).read(inside[0].removeprefix("zip://")) if inside else file.read_bytes()
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise refusal from error


# Opened once: to list a large archive anew for each picture takes longer than to read them.
_archive = lru_cache(maxsize=2)(zipfile.ZipFile)


def _suffix(data: bytes, number: int) -> str:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            return _SUFFIXES[str(image.format)]
    except (OSError, KeyError) as error:
        raise DataError(
            f"the image in row {number} is none that a training reads", hint="JPEG, PNG, WebP, BMP"
        ) from error


def _write_mask(data: bytes, path: Path, number: int) -> None:
    if data.startswith(b"\x89PNG"):
        path.write_bytes(data)
        return
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            image.save(path)
    except OSError as error:  # no picture, or of a kind that PNG has no place for
        raise DataError(
            f"the mask in row {number} is no picture that can be a PNG",
            hint="name another column: --mask-column",
        ) from error
