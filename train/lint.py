"""What is wrong or odd about a folder of training data: every finding at once, before a model is loaded."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hubctl.errors import DataError
from train.dataset import (
    IMAGE_SUFFIXES,
    METADATA,
    CaptionedImage,
    is_captioned,
    list_images,
    open_image,
    read_caption_items,
    splits,
)
from train.masks import IGNORED, MaskedImage, Pairs, find_pairs, has_masks, name_classes
from train.subject import subject_images

if TYPE_CHECKING:
    from PIL import Image

Kind = Literal["captions", "masks", "subject"]
Level = Literal["error", "warning", "note"]

RARE = 0.005
"""Part of the pixels below which a class is called rare."""
EXIF_ORIENTATION = 0x0112
UNREAD = (".gif", ".tif", ".tiff", ".heic", ".heif", ".avif", ".jxl", ".jp2", ".jfif", ".tga", ".svg", ".psd")
"""Files that are pictures to their owner, and nothing to a training."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing about one file."""

    code: str
    """Stable, for machines: `corrupt`, `tiny`, `duplicate`, ..."""
    level: Level
    file: str
    """As it lies in the folder."""
    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Lint:
    """A folder, looked through."""

    kind: Kind
    images: int
    captions: dict[str, str]
    """Three of the captions as training will see them, by file."""
    classes: dict[str, float]
    """masks: part of all counted pixels, by class."""
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> int:
        """How many findings would stop a training."""
        return sum(finding.level == "error" for finding in self.findings)


def lint(folder: Path, *, min_px: int = 64, trigger: str | None = None) -> Lint:
    """Look through a folder of captioned images, of images with masks, or of one subject; splits included.

    Args:
        folder: The data, as `hubctl train` takes them.
        min_px: Shorter side, in pixels, below which an image is called tiny.
        trigger: A word that every caption should have.

    Raises:
        DataError: the folder is not there, or holds no images.
    """
    part, test_part = splits(folder)
    parts = [part, *([test_part] if test_part else [])]
    kind = _kind(folder, part)
    findings: list[Finding] = []
    captions: dict[str, str] = {}
    classes: Counter[str] = Counter()
    images: list[Path] = []
    if kind == "masks":
        pairs = find_pairs(folder)
        images += [item.path for item in (*pairs.train, *pairs.test)]
        findings += _masks(folder, pairs, classes)
        for place in {folder, *parts}:
            findings += _unread(folder, place / "images")
    elif kind == "subject":
        images += subject_images(folder)
        findings += _unread(folder, folder)
    for part in parts if kind == "captions" else ():
        found, items = _captions(folder, part, trigger)
        findings += [*found, *_unread(folder, part)]
        images += sorted({*list_images(part), *(item.path for item in items)})
        captions |= {_short(folder, item.path): item.caption for item in items}
    findings += _images(folder, images, min_px)
    total = sum(classes.values())
    shares = {name: count / total for name, count in sorted(classes.items())} if total else {}
    findings += [
        Finding(code="rare-class", level="warning", file=".", message=f"class {name} covers {share:.2%} only")
        for name, share in shares.items()
        if share < RARE
    ]
    order = {"error": 0, "warning": 1, "note": 2}
    return Lint(
        kind=kind,
        images=len(images),
        captions=dict(_three(captions)),
        classes=shares,
        findings=tuple(sorted(findings, key=lambda f: (order[f.level], f.file, f.code))),
    )


def _kind(folder: Path, part: Path) -> Kind:
    if has_masks(folder) or has_masks(part):
        return "masks"
    return "captions" if is_captioned(folder) else "subject"


def _unread(folder: Path, part: Path) -> Iterator[Finding]:
    """Pictures of kinds that training does not read."""
    for path in sorted(part.iterdir()) if part.is_dir() else ():
        if path.suffix.lower() in UNREAD and path.is_file() and path.name[0] != ".":
            said = f"is not read: training takes {', '.join(IMAGE_SUFFIXES)}"
            yield Finding(code="unread", level="warning", file=_short(folder, path), message=said)


def _captions(
    folder: Path, part: Path, trigger: str | None
) -> tuple[list[Finding], tuple[CaptionedImage, ...]]:
    items, faults = read_caption_items(part)
    findings = [
        Finding(code="caption", level="error", file=_short(folder, path), message=fault.message)
        for path, fault in faults
    ]
    findings += _sidecars(folder, part)
    for item in items:
        if trigger and trigger.lower() not in item.caption.lower():
            findings.append(
                Finding(
                    code="no-trigger",
                    level="warning",
                    file=_short(folder, item.path),
                    message=f"its caption has no '{trigger}': {item.caption}",
                )
            )
    return findings, items


def _sidecars(folder: Path, part: Path) -> Iterator[Finding]:
    """What is odd about the .txt files beside the images."""
    pictured: defaultdict[Path, list[str]] = defaultdict(list)
    for path in list_images(part):
        pictured[path.with_suffix(".txt")].append(path.name)
    texts = [path for path in sorted(part.glob("*.txt")) if path.is_file() and path.name[0] != "."]
    used = [path for path in texts if path in pictured]
    if (part / METADATA).is_file():
        if used:
            said = f"{len(used)} .txt captions are ignored, because {METADATA} is there"
            yield Finding(
                code="captions-ignored", level="warning", file=_short(folder, used[0]), message=said
            )
        return
    for path in texts:
        names = pictured.get(path, [])
        if not names:
            said = "is a caption without an image"
            yield Finding(code="lost-caption", level="warning", file=_short(folder, path), message=said)
        elif len(names) > 1:
            said = f"is the caption of several images: {', '.join(names)}"
            yield Finding(code="shared-caption", level="warning", file=_short(folder, path), message=said)


def _masks(folder: Path, pairs: Pairs, classes: Counter[str]) -> Iterator[Finding]:
    """Findings of the masks; counts pixels into `classes` on the way."""
    import numpy as np

    for path, fault in pairs.faults:
        yield Finding(code="mask", level="error", file=_short(folder, path), message=fault.message)
    found: dict[Path, dict[int, int]] = {}
    for item in (*pairs.train, *pairs.test):
        name = _short(folder, item.mask)
        yield from _mask_fits(folder, item)
        try:
            mask = item.classes()
        except DataError as fault:
            yield Finding(code="mask", level="error", file=name, message=fault.message)
            continue
        values, counts = np.unique(mask[mask != IGNORED], return_counts=True)
        found[item.mask] = dict(zip(values.tolist(), counts.tolist(), strict=True))
        if not found[item.mask]:
            said = "has no pixel that counts: all are ignored, and its image teaches nothing"
            yield Finding(code="mask-blank", level="warning", file=name, message=said)
    names, faults = name_classes(folder, pairs, found)
    for path, wrong in faults:
        code = "mask-value" if path in found else "classes"
        yield Finding(code=code, level="error", file=_short(folder, path), message=wrong.message)
    for counted in found.values():
        for value, count in counted.items():
            classes[names.get(value, f"class {value}")] += count


def _mask_fits(folder: Path, item: MaskedImage) -> Iterator[Finding]:
    try:
        size, mask = open_image(item.path).size, item.classes().shape[::-1]
    except DataError:
        return  # said elsewhere
    if size != mask:
        yield Finding(
            code="mask-size",
            level="error",
            file=_short(folder, item.mask),
            message=f"has {mask[0]} x {mask[1]} pixels, its image {size[0]} x {size[1]}",
        )


def _images(folder: Path, images: Sequence[Path], min_px: int) -> Iterator[Finding]:
    from PIL import Image

    alike: defaultdict[str, list[Path]] = defaultdict(list)
    for path in images:
        name = _short(folder, path)
        try:
            image = open_image(path)
        except DataError as fault:
            yield Finding(code="corrupt", level="error", file=name, message=fault.message)
            continue
        if min(image.size) < min_px:
            size = f"{image.width} x {image.height}"
            yield Finding(code="tiny", level="warning", file=name, message=f"is only {size} pixels")
        with Image.open(path) as raw:
            turned = raw.getexif().get(EXIF_ORIENTATION, 1) != 1
        if turned:
            said = "is turned as its EXIF data say; other tools may show it lying"
            yield Finding(code="exif-rotation", level="note", file=name, message=said)
        alike[_look(image)].append(path)
    for first, *others in alike.values():
        for other in others:
            said = f"looks the same as {_short(folder, first)}"
            yield Finding(code="duplicate", level="warning", file=_short(folder, other), message=said)


def _look(image: Image.Image) -> str:
    """The same for pictures that look the same: what is left of it at 16 x 16 in 16 shades a channel."""
    small = image.resize((16, 16)).point(lambda value: value // 16)
    return hashlib.sha256(small.tobytes()).hexdigest()


def _three(captions: dict[str, str]) -> list[tuple[str, str]]:
    items = list(captions.items())
    return items[:: max(1, len(items) // 3)][:3]


def _short(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix()
