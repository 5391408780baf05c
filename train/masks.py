"""Images with masks on disk: found, paired, and their pixels turned into class numbers.

DIR/images/*.png + DIR/masks/<same stem>.png, alone or under DIR/train and DIR/test; or the Oxford-IIIT Pet
layout, DIR/images/*.jpg + DIR/annotations/trimaps/*.png + annotations/trainval.txt and test.txt.

DIR/labels.json says what pixels mean: by value, {"0": "background", "255": "pet"}, or by colour,
{"#000000": "background", "#ff0000": "pet"}. Equal names are one class, null is ignored, and so is 255 where
it has no name. Without labels.json pixels are class numbers: 0, 1, ...
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubctl.errors import DataError
from train.dataset import (
    Faults,
    decoded,
    fingerprint,
    images_in,
    list_images,
    open_image,
    read_text,
    require_folder,
    require_text,
    splits,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    Mask = NDArray[np.uint8]

IGNORED = 255
"""The class number of pixels that neither train nor count."""
LABELS = "labels.json"
TRIMAPS = Path("annotations/trimaps")
"""Where the Oxford-IIIT Pet data set (https://www.robots.ox.ac.uk/~vgg/data/pets/) keeps its masks."""
PETS = {"1": "pet", "2": "background", "3": "border"}
_EXAMPLE = '{"0": "pet", "1": "border", "2": "background"} or {"#ff0000": "pet", "#000000": "background"}'

Color = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Labels:
    """What the pixels of masks mean."""

    names: Mapping[int, str] = field(default_factory=dict)
    """Class number (0 to n - 1) to name; empty where nothing says."""
    values: Mapping[int, int] = field(default_factory=dict)
    """Pixel value to class number, or IGNORED."""
    colors: Mapping[Color, int] = field(default_factory=dict)
    """The same by colour; then the values are not looked at."""

    @property
    def plain(self) -> bool:
        """Pixels are class numbers already."""
        return not self.colors and all(value == number for value, number in self.values.items())


PLAIN = Labels()


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskedImage:
    """One picture and the class of each of its pixels."""

    path: Path
    mask: Path
    labels: Labels = PLAIN

    def classes(self) -> Mask:
        """The class number of each pixel, uint8 (height, width).

        Raises:
            DataError: the mask is no image, or has pixels without a class.
        """
        return open_mask(self.mask, self.labels)


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskData:
    """Data for segmentation."""

    train: tuple[MaskedImage, ...]
    test: tuple[MaskedImage, ...]
    labels: dict[int, str]
    """Class number (0 to n - 1) to name."""
    sha256: str
    blank: frozenset[Path] = frozenset()
    """Masks whose pixels are all ignored."""
    watched: tuple[MaskedImage, ...] = ()
    """Held out of `train`, to see whether training overfits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairs:
    """All images of a folder that have a mask, and what is wrong with the others."""

    train: tuple[MaskedImage, ...]
    test: tuple[MaskedImage, ...]
    labels: Labels
    faults: Faults


def read_masks(folder: Path, names: Mapping[int, str] | None = None) -> MaskData:
    """Read images with masks and their splits; `names` serve without labels.json.

    Raises:
        DataError: the folder, a mask, an image or labels.json cannot be used; the message names the file.
    """
    pairs = find_pairs(folder, names)
    for _, fault in pairs.faults:
        raise fault
    found = {item.mask: _check_mask(item) for item in (*pairs.train, *pairs.test)}
    labels, faults = name_classes(folder, pairs, found)
    for _, fault in faults:
        raise fault
    meaning = json.dumps(labels, sort_keys=True)
    if not pairs.labels.plain:
        meaning += repr((sorted(pairs.labels.values.items()), sorted(pairs.labels.colors.items())))
    items = [(path, "") for item in (*pairs.train, *pairs.test) for path in (item.path, item.mask)]
    sha256 = fingerprint(folder, items, meaning)
    blank = frozenset(mask for mask, values in found.items() if not values)
    return MaskData(train=pairs.train, test=pairs.test, labels=labels, sha256=sha256, blank=blank)


def name_classes(
    folder: Path, pairs: Pairs, found: Mapping[Path, Collection[int]]
) -> tuple[dict[int, str], Faults]:
    """The names of all classes, and what is wrong with those that were `found` in the masks."""
    labels = dict(pairs.labels.names)
    if not labels:
        top = max((value for item in pairs.train for value in found.get(item.mask, ())), default=0)
        labels = {number: f"class {number}" for number in range(top + 1)}
    if len(labels) < 2:
        fault = DataError(
            f"the masks in {folder} hold one class only, so there is nothing to tell apart",
            hint="paint at least two classes: 0, 1, ...; or say what the pixels mean, where one of them is "
            f'{IGNORED}, in {folder / LABELS}: {{"0": "background", "255": "object"}}',
        )
        return labels, [(folder, fault)]
    if len(labels) > IGNORED:
        fault = DataError(f"{folder / LABELS} names {len(labels)} classes", hint=f"use {IGNORED} at most")
        return labels, [(folder / LABELS, fault)]
    faults = _blank_splits(folder, pairs, found)
    if faults:
        return labels, faults
    for mask, values in found.items():
        if strange := sorted(set(values) - labels.keys()):
            fault = DataError(
                f"{mask} has the value {strange[0]}, but the classes are 0 to {len(labels) - 1} "
                f"(and {IGNORED} for ignored pixels)",
                hint=f"repaint it, or name that class in {folder / LABELS}",
            )
            faults.append((mask, fault))
    return labels, faults


def _blank_splits(folder: Path, pairs: Pairs, found: Mapping[Path, Collection[int]]) -> Faults:
    """Faults of splits whose masks are all ignored: they would teach nothing, or have no figures."""
    faults: Faults = []
    for purpose, items in (("train on", pairs.train), ("judge by", pairs.test)):
        blank = [item.mask for item in items if not found.get(item.mask, True)]
        if not items or len(blank) < len(items):
            continue
        named = ", ".join(mask.relative_to(folder).as_posix() for mask in blank[:3])
        more = f" and {len(blank) - 3} more" if len(blank) > 3 else ""
        fault = DataError(
            f"no mask to {purpose} in {folder} has a pixel that counts, all are ignored: {named}{more}",
            hint=f"paint the classes, or name them in {folder / LABELS}",
        )
        faults.append((folder, fault))
    return faults


def has_masks(folder: Path) -> bool:
    """Whether the folder, or a split, is laid out as images with masks."""
    return (folder / "images").is_dir() and any((folder / name).is_dir() for name in ("masks", TRIMAPS))


def find_pairs(folder: Path, names: Mapping[int, str] | None = None) -> Pairs:
    """Every image with its mask, and every image or mask that is alone.

    Raises:
        DataError: a folder is missing or empty, or labels.json cannot be understood.
    """
    require_folder(folder)
    train_folder, test_folder = splits(folder)
    given = {str(number): name for number, name in (names or {}).items()}
    if (folder / TRIMAPS).is_dir():
        labels = _read_labels((folder,)) or parse_labels(given or PETS)
        train, faults = _listed_pairs(folder, "trainval.txt", labels)
        test, more = _listed_pairs(folder, "test.txt", labels)
    else:
        labels = _read_labels((folder, train_folder)) or (parse_labels(given) if given else PLAIN)
        train, faults = _stem_pairs(train_folder, labels)
        test, more = _stem_pairs(test_folder, labels) if test_folder else ((), [])
    return Pairs(train=train, test=test, labels=labels, faults=[*faults, *more])


def open_mask(path: Path, labels: Labels = PLAIN) -> Mask:
    """The class number of each pixel, uint8 (height, width).

    Raises:
        DataError: it is no image, one with several channels where values are meant, or has pixels without a
            class.
    """
    import numpy as np

    image = decoded(path)
    if labels.colors:
        return _by_color(path, image, labels)
    if image.mode not in ("L", "P", "1", "I", "I;16"):
        raise DataError(
            f"{path} is a {image.mode} picture, not a mask",
            hint="save it with one channel, the class number of each pixel (8-bit grey or palette PNG); or "
            f"name its colours in {LABELS}: {_named_colors(image)}",
        )
    values = np.asarray(image)
    if values.dtype != np.uint8 and values.dtype != np.bool_ and values.max(initial=0) > IGNORED:
        raise DataError(
            f"{path} has the value {values.max()}, above {IGNORED}",
            hint="save it as an 8-bit PNG: the class number of each pixel",
        )
    small: Mask = values.astype(np.uint8)
    if labels.plain:
        return small
    known = {IGNORED: IGNORED, **labels.values}
    strange = [int(value) for value in np.unique(small) if int(value) not in known]
    if strange:
        raise DataError(
            f"{path} has the value {strange[0]}, which {LABELS} does not name",
            hint=f'repaint it, or name it: {{"{strange[0]}": "..."}}; null is ignored',
        )
    table = np.zeros(256, np.uint8)
    for value, number in known.items():
        table[value] = number
    numbers: Mask = table[small]
    return numbers


def parse_labels(entries: Mapping[str, str | None]) -> Labels:
    """What labels.json says: pixel values or colours to names; equal names are one class.

    Classes by value are numbered in the order of their values, those by colour in the order given.

    Raises:
        ValueError: a key is neither a value of 0 to 255 nor a colour, or both occur.
    """
    by_color = [key for key in entries if key.startswith("#")]
    if by_color and len(by_color) < len(entries):
        raise ValueError("either values or colours, not both")
    keys = list(entries) if by_color else sorted(entries, key=int)
    names = list(dict.fromkeys(name for key in keys if (name := entries[key]) is not None))
    numbers = {key: IGNORED if (name := entries[key]) is None else names.index(name) for key in keys}
    if by_color:
        colors = {_color(key): number for key, number in numbers.items()}
        return Labels(names=dict(enumerate(names)), colors=colors)
    values = {int(key): number for key, number in numbers.items()}
    if strange := [value for value in values if not 0 <= value <= IGNORED]:
        raise ValueError(f"{strange[0]} is no pixel value")
    return Labels(names=dict(enumerate(names)), values=values)


def _color(text: str) -> Color:
    if not re.fullmatch("#[0-9a-fA-F]{6}", text):
        raise ValueError(f"{text} is no colour like #ff0000")
    red, green, blue = bytes.fromhex(text[1:])
    return red, green, blue


def _by_color(path: Path, image: Image.Image, labels: Labels) -> Mask:
    import numpy as np

    pixels = np.asarray(image.convert("RGB"), np.uint32)
    packed = (pixels[..., 0] << 16) | (pixels[..., 1] << 8) | pixels[..., 2]
    found, places = np.unique(packed, return_inverse=True)
    numbers = {red << 16 | green << 8 | blue: n for (red, green, blue), n in labels.colors.items()}
    if strange := [value for value in found.tolist() if value not in numbers]:
        raise DataError(
            f"{path} has the colour #{strange[0]:06x}, which {LABELS} does not name",
            hint=f'repaint it, or name it: {{"#{strange[0]:06x}": "..."}}; null is ignored',
        )
    table = np.array([numbers[value] for value in found.tolist()], np.uint8)
    classes: Mask = table[places].reshape(packed.shape)
    return classes


def _named_colors(image: Image.Image) -> str:
    """An example of labels.json with the colours that cover most of the picture."""
    import numpy as np

    colors, counts = np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0, return_counts=True)
    most = [f"#{color.tobytes().hex()}" for color in colors[np.argsort(-counts)][:3]]
    return json.dumps({color: f"class {number}" for number, color in enumerate(most)})


def _check_mask(item: MaskedImage) -> set[int]:
    """The class numbers in the mask, which must be as large as its image."""
    import numpy as np

    width, height = open_image(item.path).size
    mask = item.classes()
    if mask.shape != (height, width):
        raise DataError(
            f"{item.mask} has {mask.shape[1]} x {mask.shape[0]} pixels, its image {width} x {height}",
            hint="save the mask in the image's own size",
        )
    return {int(value) for value in np.unique(mask)} - {IGNORED}


def _read_labels(folders: Iterable[Path]) -> Labels | None:
    path = next((folder / LABELS for folder in folders if (folder / LABELS).is_file()), None)
    if path is None:
        return None
    try:
        entries: Any = json.loads(read_text(path))
        named = {key: name if name is None else str(name) for key, name in entries.items()}
        for key, name in named.items():
            require_text(f"{key} {name}", str(path))
        return parse_labels(named)
    except (ValueError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{path} does not name the classes: {error}", hint=f"write it like {_EXAMPLE}"
        ) from error


def _stem_pairs(folder: Path, labels: Labels) -> tuple[tuple[MaskedImage, ...], Faults]:
    images = images_in(folder / "images")
    mask_folder = folder / "masks"
    require_folder(mask_folder)
    masks, alike = _by_stem(mask_folder), Counter(path.stem for path in images)
    items = []
    faults: Faults = []
    for path in images:
        found = masks.get(path.stem, [])
        if not found:
            hint = f"add {mask_folder / (path.stem + '.png')}, or remove the image"
            faults.append((path, DataError(f"{path} has no mask", hint=hint)))
        elif len(found) > 1 or alike[path.stem] > 1:
            faults.append((path, _ambiguous(path)))
        else:
            items.append(MaskedImage(path=path, mask=found[0], labels=labels))
    for orphan in (path for stem, paths in masks.items() if stem not in alike for path in paths):
        hint = f"add it to {folder / 'images'}, or remove the mask"
        faults.append((orphan, DataError(f"{orphan} has no image", hint=hint)))
    return tuple(items), faults


def _by_stem(folder: Path) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for path in list_images(folder):
        if path.suffix.lower() == ".png":
            found.setdefault(path.stem, []).append(path)
    return found


def _ambiguous(image: Path) -> DataError:
    return DataError(
        f"{image}: several images or masks are called {image.stem}, so nobody knows which belong together",
        hint="give each pair a name of its own",
    )


def _listed_pairs(folder: Path, name: str, labels: Labels) -> tuple[tuple[MaskedImage, ...], Faults]:
    """The pairs of one of the Pet data set's lists, whose lines begin with a stem."""
    listing = folder / "annotations" / name
    if not listing.is_file():
        raise DataError(f"{listing} is missing, which lists a split", hint="unpack annotations.tar.gz again")
    images = {path.stem: path for path in list_images(folder / "images")}
    masks = _by_stem(folder / TRIMAPS)
    alike = Counter(path.stem for path in list_images(folder / "images"))
    items = []
    faults: Faults = []
    for number, line in enumerate(read_text(listing).split("\n"), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        stem = line.split()[0]
        found, image = masks.get(stem, []), images.get(stem)
        if image is None or not found:
            lacking = f"images/{stem}.jpg" if image is None else f"{TRIMAPS}/{stem}.png"
            fault = DataError(f"{listing}:{number} names {stem}, but {folder / lacking} is missing",
                              hint="add it, or delete the line")  # fmt: skip
            faults.append((listing, fault))
        elif len(found) > 1 or alike[stem] > 1:
            faults.append((image, _ambiguous(image)))
        else:
            items.append(MaskedImage(path=image, mask=found[0], labels=labels))
    return tuple(items), faults
