"""What the demo trains on and is judged by: the folders that come with hubctl."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

DATA = Path(__file__).parent / "data"
DRAWINGS = DATA / "openmoji-line"
ANIMALS = DATA / "fluent-animals"


STYLE_WORDS = "line art style"
"""How the drawings' captions end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOut:
    """A thing that the style adapter was not shown."""

    name: str
    drawing: Path | None
    """What OpenMoji drew for it, where that is at hand."""

    @property
    def prompt(self) -> str:
        """Its caption, as the training captions are worded."""
        return f"{self.name}, {STYLE_WORDS}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Masked:
    """A picture, and the class of each of its pixels."""

    image: Path
    mask: Path


def read_held_out(folder: Path) -> list[HeldOut]:
    """The things that `folder/held_out.txt` lists, in its order."""
    found = []
    for name in (folder / "held_out.txt").read_text(encoding="utf-8").splitlines():
        drawing = folder / "held_out" / f"{name.replace(' ', '-')}.png"
        found.append(HeldOut(name=name, drawing=drawing if drawing.is_file() else None))
    return found


def read_masked(folder: Path) -> list[Masked]:
    """The pictures in `folder/images` with their masks, by name."""
    return [
        Masked(image=path, mask=folder / "masks" / f"{path.stem}.png")
        for path in sorted((folder / "images").iterdir())
    ]


def read_labels(folder: Path) -> list[str]:
    """The classes' names, by number."""
    names = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
    return [names[str(number)] for number in range(len(names))]
