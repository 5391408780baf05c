"""A table of small pictures with captions, as one image."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

_MARGIN_PX = 6
_LABEL_PX = 120
_HEADER_PX = 18
_CELL_PX = 128
MAX_LOOKS = 8


def chosen_looks(count: int) -> list[int]:
    """Which of `count` looks at a training fit into one picture: the first, the last, and some between."""
    if count <= MAX_LOOKS:
        return list(range(count))
    return [round(place * (count - 1) / (MAX_LOOKS - 1)) for place in range(MAX_LOOKS)]


def draw_looks(
    folder: Path,
    step: int,
    pictures: Sequence[Image.Image],
    rows: Sequence[str],
    *,
    untrained: str,
    before: Sequence[tuple[str, Sequence[Image.Image]]] = (),
) -> Path:
    """Add the look at `step` to those that `folder` keeps, and draw all as columns of `grid.png`; its path.

    Looks are kept as files, so that a training that was stopped goes on with the same picture. Step 0 is
    titled `untrained`; columns `before` stand to the left.
    """
    look = folder / "looks" / f"{step:08}"
    look.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(pictures):
        picture.save(look / f"{number:04}.png")
    taken = sorted(look.parent.iterdir())
    columns = list(before)
    for path in (taken[place] for place in chosen_looks(len(taken))):
        number = int(path.name)
        drawn = [Image.open(file) for file in sorted(path.iterdir())]
        columns.append((f"step {number}" if number else untrained, drawn))
    table = [[column[row] for _, column in columns] for row in range(len(rows))]
    grid = folder / "grid.png"
    draw_grid(rows, [title for title, _ in columns], table).save(grid)
    return grid


def draw_grid(
    rows: Sequence[str], columns: Sequence[str], pictures: Sequence[Sequence[Image.Image]]
) -> Image.Image:
    """`pictures[row][column]` with a caption before each row and above each column."""
    cell = max(_CELL_PX, *(picture.width for row in pictures for picture in row))
    pitch = cell + _MARGIN_PX
    size = (
        _LABEL_PX + _MARGIN_PX + pitch * len(columns),
        _HEADER_PX + _MARGIN_PX + pitch * len(rows),
    )
    grid = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(grid)
    for column, title in enumerate(columns):
        pen.text((_LABEL_PX + _MARGIN_PX + column * pitch, _MARGIN_PX), title, fill="black")
    for row, caption in enumerate(rows):
        top = _HEADER_PX + _MARGIN_PX + row * pitch
        pen.multiline_text((_MARGIN_PX, top), textwrap.fill(caption, 18), fill="black")
        for column, picture in enumerate(pictures[row]):
            shown = picture.convert("RGB").resize((cell, cell), Image.Resampling.BICUBIC)
            grid.paste(shown, (_LABEL_PX + _MARGIN_PX + column * pitch, top))
    return grid
