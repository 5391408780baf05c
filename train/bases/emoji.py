"""The emoji the bases learn from: which ones, what they are called, which are held out."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from train.bases.words import plain_names

GROUPS = (
    "smileys-emotion",
    "people-body",
    "animals-nature",
    "food-drink",
    "travel-places",
    "activities",
    "objects",
)
VENDORS = {"noto": "google", "twemoji": "twitter"}
STYLE_WORDS = {"noto": "noto style", "twemoji": "twemoji style"}
LINE_STYLE = "line art style"


@dataclass(frozen=True, kw_only=True, slots=True)
class Emoji:
    """One emoji that both vendors draw."""

    hexcode: str
    name: str
    group: str
    subgroup: str
    synonyms: tuple[str, ...]
    held_out: bool

    @property
    def file_stem(self) -> str:
        """The vendors' file name, without the variation selector."""
        return _without_selector(self.hexcode)


def load_emoji(data: Path) -> list[Emoji]:
    """Lists every emoji the bases use, in OpenMoji's order.

    Args:
        data: the folder that `train.bases.fetch` filled.
    """
    records = json.loads((data / "openmoji/data/openmoji.json").read_text())
    drawn = [set(_files_by_stem(data, vendor)) for vendor in VENDORS]
    rows = [
        row
        for row in records
        if row["group"] in GROUPS
        and not row["skintone"]
        and all(_without_selector(row["hexcode"]) in stems for stems in drawn)
    ]
    plain = plain_names()
    return [
        Emoji(
            hexcode=row["hexcode"],
            name=row["annotation"].lower(),
            group=row["group"],
            subgroup=row["subgroups"],
            synonyms=plain.get(row["annotation"].lower(), ()),
            held_out=is_held_out(row["hexcode"]),
        )
        for row in rows
    ]


def is_held_out(hexcode: str) -> bool:
    """About one emoji in twenty, decided by its code alone."""
    return int(hashlib.sha256(f"hubctl-6:{hexcode}".encode()).hexdigest(), 16) % 20 == 0


def load_rgba(data: Path, vendor: str, emoji: list[Emoji]) -> np.ndarray:
    """Reads one vendor's 64 px pictures, uint8 [N, 64, 64, 4]."""
    files = _files_by_stem(data, vendor)
    size = (64, 64)
    pictures = [Image.open(files[e.file_stem]).convert("RGBA").resize(size) for e in emoji]
    return np.stack([np.asarray(picture) for picture in pictures])


def on_white(rgba: np.ndarray) -> np.ndarray:
    """Composites uint8 [N, H, W, 4] over white, giving uint8 [N, H, W, 3]."""
    alpha = rgba[..., 3:].astype(np.float32) / 255
    return np.rint(rgba[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)


def _files_by_stem(data: Path, vendor: str) -> dict[str, Path]:
    folder = data / f"emoji-datasource-{VENDORS[vendor]}/img/{VENDORS[vendor]}/64"
    return {_without_selector(path.stem): path for path in sorted(folder.glob("*.png"))}


def _without_selector(hexcode: str) -> str:
    return "-".join(part for part in hexcode.lower().split("-") if part != "fe0f")
