"""Images of one subject, and of its class: the user's own, and what the base draws where some are missing.

What the base draws is known by its name, which says what it was drawn from and what came out; a file of such
a name that holds something else is the user's. It comes after the user's images whether it was drawn just now
or before, and is in no hash, since the settings make it again.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hubctl.errors import DataError, InputError
from train.config import TrainConfig
from train.dataset import METADATA, fingerprint, images_in, list_images, open_image, require_folder, splits

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassImages:
    """Images of the subject's class."""

    given: tuple[Path, ...] = ()
    """The user's, by name."""
    drawn: tuple[Path, ...] = ()
    """By the base, for an earlier training: all that this one needs, or none."""
    to_draw: int = 0
    """How many the base has yet to draw."""
    folder: Path | None = None
    """Where those go; None where nobody named one."""
    stem: str = ""
    """How their names begin."""
    sha256: str | None = None
    """Of the user's; None where no class trains along."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SubjectData:
    """Data for dreambooth."""

    train: tuple[Path, ...]
    classes: ClassImages
    sha256: str
    watched: tuple[Path, ...] = ()
    """Held out of `train`, to see whether training overfits."""


def read_subject(folder: Path, classes: ClassImages | None = None) -> SubjectData:
    """Read the images of one subject, and check those of its class.

    Raises:
        DataError: the folder or an image cannot be used; the message names the file.
    """
    images = subject_images(folder)
    classes = classes or ClassImages()
    for path in (*images, *classes.given, *classes.drawn):
        open_image(path)
    sha256 = fingerprint(folder, ((path, "") for path in images))
    return SubjectData(train=images, classes=classes, sha256=sha256)


def subject_images(folder: Path) -> tuple[Path, ...]:
    """The images in the folder itself, by name: a subject has no splits.

    Raises:
        DataError: there is no folder, or none in it.
    """
    part, _ = splits(folder)
    if part != folder and not list_images(folder) and list_images(part):
        raise DataError(
            f"{folder} holds no images itself, but {part} does",
            hint=f"for one subject: --data {part}; for text-to-image: write captions into {part / METADATA}",
        )
    return images_in(folder)


def find_class_images(config: TrainConfig, base_sha256: str, side_px: int) -> ClassImages:
    """The class images that there are for a training on this base at this resolution, and what is missing.

    Raises:
        DataError: the class folder is no folder.
    """
    if not config.class_prompt:
        return ClassImages()
    folder = config.class_data
    if folder is None:
        return ClassImages(to_draw=config.num_class_images, sha256=fingerprint(Path(), ()))
    # It may be absent or empty: the base then draws what is missing.
    if folder.exists():
        require_folder(folder, flag="--class-data")
    images = list_images(folder) if folder.exists() else ()
    stem = _drawn_stem(config, base_sha256, side_px)
    before = _drawn_before(images, stem)
    given = tuple(path for path in images if path not in before)
    missing = max(0, config.num_class_images - len(given))
    numbered = {number: path for path, number in before.items() if number <= missing}
    there = len(numbered) == missing
    return ClassImages(
        given=given,
        drawn=tuple(numbered[number] for number in sorted(numbered)) if there else (),
        to_draw=0 if there else missing,
        folder=folder,
        stem=stem,
        sha256=fingerprint(folder, ((path, "") for path in given)),
    )


def make_class_folder(classes: ClassImages) -> None:
    """Make the folder for what is to be drawn.

    Raises:
        InputError: it cannot be made.
    """
    if classes.folder is None:
        return
    try:
        classes.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot write {classes.folder}: {error.strerror}", hint="choose another --class-data"
        ) from error


def keep_drawn(classes: ClassImages, pictures: Sequence[Image.Image]) -> None:
    """Write what the base has drawn into the class folder, if there is one, for the next training."""
    if classes.folder is None:
        return
    before = _drawn_before(list_images(classes.folder), classes.stem)
    for number, picture in enumerate(pictures, start=1):
        png = io.BytesIO()
        picture.save(png, "PNG")
        place = classes.folder / f"{classes.stem}{number:04}-{_key(png.getvalue())}.png"
        part = place.with_suffix(".part")
        part.write_bytes(png.getvalue())
        part.replace(place)  # whole or not at all: half a picture would count as the user's
        for other in (path for path, taken in before.items() if taken == number and path != place):
            other.unlink()  # of another device or version, whose numbers round differently


def _drawn_before(images: Iterable[Path], stem: str) -> dict[Path, int]:
    """Those that the base drew, each with its number, and that nobody has changed."""
    named = re.compile(re.escape(stem) + r"(\d+)-([0-9a-f]+)\.png")
    matches = ((path, named.fullmatch(path.name)) for path in images)
    return {path: int(found[1]) for path, found in matches if found and found[2] == _key(path.read_bytes())}


def _key(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:8]


def _drawn_stem(config: TrainConfig, base_sha256: str, side_px: int) -> str:
    """How names of the pictures begin that this base draws of this prompt, and no others."""
    facts = [base_sha256, config.class_prompt, side_px, config.quantize, config.new_tokens]
    return f"class-{config.seed}-{_key(json.dumps(facts).encode())}-"
