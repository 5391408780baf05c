"""Pictures for the report: data URIs, label overlays, and curves as SVG paths."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

COLORS = ((127, 127, 127), (20, 184, 166), (249, 115, 22), (168, 85, 247), (234, 179, 8), (59, 130, 246))
"""By class; what counts as background stays unpainted."""
OPACITY = 0.62
_MIMES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}
_SMOOTHED_STEPS = 15


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """One training's losses, ready to be drawn in a `width` x `height` SVG."""

    raw: str
    smooth: str
    """`points` of two polylines."""
    low: float
    high: float
    """The values at the bottom and the top."""
    last: float
    steps: int


def data_uri(data: bytes, mime: str = "image/png") -> str:
    """`data` as an address that needs no file."""
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def file_uri(path: Path) -> str:
    """The picture file `path` as an address that needs no file."""
    return data_uri(path.read_bytes(), _MIMES[path.suffix.lower()])


def overlay(photo: Path, labels: Path, mapping: Sequence[int], background: int | None) -> str:
    """`photo` with each class of the label image `labels` painted on it, as a data URI.

    Label p is painted in the colour of class `mapping[p]`.
    """
    from PIL import Image

    with Image.open(photo) as opened:
        picture = opened.convert("RGB")
    with Image.open(labels) as opened:
        numbers = opened.convert("L")
    palette = [COLORS[kind % len(COLORS)] for kind in mapping]
    paint = Image.merge("RGB", [numbers.point(_table([color[i] for color in palette])) for i in range(3)])
    alphas = [0 if kind == background else round(255 * OPACITY) for kind in mapping]
    mixed = Image.composite(paint, picture, numbers.point(_table(alphas)))
    file = io.BytesIO()
    mixed.save(file, "PNG", optimize=True)
    return data_uri(file.getvalue())


def curve(values: Sequence[float], *, width: float, height: float) -> Curve | None:
    """The losses as points; None when there are too few to draw."""
    if len(values) < 2:
        return None
    means = running_mean(values, _SMOOTHED_STEPS)
    # One wild step must not flatten the rest: the axis ends a little above all but the wildest.
    high = sorted(values)[math.ceil(len(values) * 0.99) - 1] * 1.05
    low = min(0.0, *values)
    return Curve(
        raw=_points(values, low, high, width, height),
        smooth=_points(means, low, high, width, height),
        low=low,
        high=high,
        last=means[-1],
        steps=len(values),
    )


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """The mean of each value with up to `window - 1` before it."""
    return [sum(values[max(0, end - window) : end]) / min(end, window) for end in range(1, len(values) + 1)]


def _points(values: Sequence[float], low: float, high: float, width: float, height: float) -> str:
    across, span = width / (len(values) - 1), (high - low) or 1.0
    heights = (height * (1 - (min(value, high) - low) / span) for value in values)
    return " ".join(f"{index * across:.1f},{y:.1f}" for index, y in enumerate(heights))


def _table(values: Sequence[int]) -> list[int]:
    return [*values, *[0] * (256 - len(values))]
