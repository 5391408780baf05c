"""Images of one subject, and of its class: the user's own, and what the base draws where some are missing.

What the base draws is known by its name, which says what it was drawn from: it comes after the user's images
whether it was drawn just now or before, and is in no hash, since the settings make it again.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from hubctl.errors import DataError, InputError
from train.config import TrainConfig
from train.dataset import METADATA, fingerprint, images_in, list_images, open_image, require_folder, splits


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassImages:
    """Images of the subject's class."""

    given: tuple[Path, ...] = ()
    """The user's, by name."""
    drawn: tuple[Path, ...] = ()
    """By the base, for an earlier training: all that this one needs, or none."""
    to_draw: int = 0
    """How many the base has yet to draw."""
    places: tuple[Path, ...] = ()
    """Where those go; empty where nobody named a folder."""
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
    given = tuple(path for path in images if not path.name.startswith(stem))
    missing = max(0, config.num_class_images - len(given))
    places = tuple(folder / f"{stem}{number:04}.png" for number in range(1, missing + 1))
    there = set(places) <= set(images)
    return ClassImages(
        given=given,
        drawn=places if there else (),
        to_draw=0 if there else missing,
        places=places,
        sha256=fingerprint(folder, ((path, "") for path in given)),
    )


def make_class_folder(classes: ClassImages) -> None:
    """Make the folder for what is to be drawn.

    Raises:
        InputError: it cannot be made.
    """
    if not classes.places:
        return
    folder = classes.places[0].parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot write {folder}: {error.strerror}", hint="choose another --class-data"
        ) from error


def _drawn_stem(config: TrainConfig, base_sha256: str, side_px: int) -> str:
    """How names of the pictures begin that this base draws of this prompt, and no others."""
    facts = [base_sha256, config.class_prompt, side_px, config.quantize, config.new_tokens]
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:8]
    return f"class-{config.seed}-{key}-"
