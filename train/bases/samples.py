"""Writes the demo's sample data: OpenMoji line drawings and Fluent animals with masks."""

from __future__ import annotations

import argparse
import io
import json
import random
import re
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image, ImageFilter

from train.bases.backgrounds import draw_background
from train.bases.emoji import LINE_STYLE, Emoji, load_emoji, load_rgba, on_white

LINE_COUNT = 100
TEST_SHARE = 4
SIDE_PX = 128
LABELS = {0: "background", 1: "pet", 2: "border"}
NOT_ANIMALS = frozenset(("paw prints", "feather", "wing", "spiral shell", "coral", "spider web", "microbe"))
# fmt: off
JUDGED = (
    "red apple", "banana", "pear", "strawberry", "cherries", "mushroom", "carrot", "hamburger",
    "birthday cake", "house", "castle", "deciduous tree", "palm tree", "tulip", "sunflower", "sun",
    "star", "rocket", "airplane", "automobile", "fire engine", "bus", "bicycle", "sailboat",
    "umbrella", "crown", "guitar", "trumpet", "bell", "key", "hammer", "scissors", "light bulb",
    "dog face", "cat face", "rabbit face", "penguin", "fish", "butterfly", "grinning face",
)
# fmt: on


def line_drawing(data: Path, hexcode: str, size_px: int) -> Image.Image:
    """Renders OpenMoji's black drawing of an emoji on white, its empty margin cut off."""
    svg = (data / f"openmoji/black/svg/{hexcode}.svg").read_text()
    svg = re.sub(r'viewBox="[^"]*"', 'viewBox="4 4 64 64"', svg, count=1)
    png = resvg_py.svg_to_bytes(svg_string=svg, width=size_px, height=size_px, background="white")
    return Image.open(io.BytesIO(bytes(png))).convert("RGB")


def pick_lines(emoji: list[Emoji], count: int) -> tuple[list[Emoji], list[Emoji]]:
    """Picks emoji to train on, spread over the subgroups, and the judged ones."""
    judged = {e.name: e for e in emoji if e.name in JUDGED}
    rng = random.Random(0)
    pools: dict[str, list[Emoji]] = {}
    for e in emoji:
        if e.name not in judged and not e.held_out and len(e.name.split()) <= 3:
            pools.setdefault(e.subgroup, []).append(e)
    for pool in pools.values():
        rng.shuffle(pool)
    picked: list[Emoji] = []
    while len(picked) < count:
        picked += [pool.pop() for pool in pools.values() if pool]
    rng.shuffle(picked)
    return picked[:count], [judged[name] for name in JUDGED]


def write_lines(data: Path, out: Path) -> None:
    """Writes openmoji-line/: PNGs, metadata.jsonl, held_out.txt and held_out/, OpenMoji's own."""
    train, judged = pick_lines(load_emoji(data), LINE_COUNT)
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for e in sorted(train, key=lambda e: e.hexcode):
        name = f"{e.hexcode.lower()}.png"
        line_drawing(data, e.hexcode, 64).save(out / name, optimize=True)
        rows.append(json.dumps({"file_name": name, "text": f"{e.name}, {LINE_STYLE}"}))
    (out / "metadata.jsonl").write_text("\n".join(rows) + "\n")
    (out / "held_out.txt").write_text("\n".join(e.name for e in judged) + "\n")
    (out / "held_out").mkdir(exist_ok=True)
    for e in judged:
        name = f"{e.name.replace(' ', '-')}.png"
        line_drawing(data, e.hexcode, 64).save(out / "held_out" / name, optimize=True)


def paste_animal(
    cut_out: Image.Image, background: np.ndarray, rng: np.random.Generator
) -> tuple[Image.Image, Image.Image]:
    """Pastes a cut-out somewhere on a background; returns picture and index mask."""
    side = int(SIDE_PX * rng.uniform(0.5, 0.85))
    left, top = (int(v) for v in rng.integers(0, SIDE_PX - side + 1, 2))
    if rng.random() < 0.5:
        cut_out = cut_out.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    layer = Image.new("RGBA", (SIDE_PX, SIDE_PX))
    layer.paste(cut_out.resize((side, side), Image.Resampling.LANCZOS), (left, top))
    picture = Image.fromarray(background).convert("RGBA")
    picture.alpha_composite(layer)
    inside = layer.getchannel("A").point(lambda a: 255 * (a > 127))
    wide = np.asarray(inside.filter(ImageFilter.MaxFilter(7)))
    narrow = np.asarray(inside.filter(ImageFilter.MinFilter(7)))
    mask = np.where(narrow > 0, 1, np.where(wide > 0, 2, 0)).astype(np.uint8)
    return picture.convert("RGB"), Image.fromarray(mask)


def write_animals(data: Path, out: Path) -> None:
    """Writes fluent-animals/: train/ and test/, each with images/ and masks/."""
    emoji = load_emoji(data)
    tiles = on_white(load_rgba(data, "noto", emoji[::7]))
    files = {_stem(p.stem): p for p in (data / "lobehub-fluent-emoji-3d/assets").glob("*.webp")}
    animals = [
        e
        for e in emoji
        if e.subgroup.startswith("animal-") and e.name not in NOT_ANIMALS and e.file_stem in files
    ]
    random.Random(0).shuffle(animals)
    for index, e in enumerate(animals[:LINE_COUNT]):
        rng = np.random.default_rng(index)
        split = out / ("test" if index % TEST_SHARE == 0 else "train")
        for part in ("images", "masks"):
            (split / part).mkdir(parents=True, exist_ok=True)
        cut_out = Image.open(files[e.file_stem]).convert("RGBA")
        picture, mask = paste_animal(cut_out, draw_background(SIDE_PX, rng, tiles), rng)
        name = e.name.replace(" ", "-")
        picture.save(split / "images" / f"{name}.jpg", quality=90)
        mask.save(split / "masks" / f"{name}.png", optimize=True)
    (out / "labels.json").write_text(json.dumps(LABELS, indent=2) + "\n")


def _stem(name: str) -> str:
    return "-".join(part for part in name.split("-") if part != "fe0f")


def main() -> None:
    """Writes both sample sets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    write_lines(args.data, args.out / "openmoji-line")
    write_animals(args.data, args.out / "fluent-animals")


if __name__ == "__main__":
    main()
