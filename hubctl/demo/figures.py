"""The demo's figures from what was served: pure, apart from opening the label images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

IGNORED = 255
"""The mask value of pixels that do not count."""

Matrix = list[list[int]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Segmented:
    """How well one model's labels agree with the masks."""

    miou: float
    iou: tuple[float, ...]
    """By class of the task."""
    mapping: tuple[int, ...]
    """Entry p is the task's class that predictions of class p count as."""


def hit_rate(styles: Sequence[str], wanted: str) -> float:
    """The part of the pictures that the judge takes for `wanted`."""
    return sum(style == wanted for style in styles) / len(styles)


def confusion(pairs: Iterable[tuple[bytes, bytes]], *, true_classes: int, predicted_classes: int) -> Matrix:
    """Pixels as `matrix[true][predicted]`, over (mask, labels) pairs of one byte a pixel."""
    counts: Counter[tuple[int, int]] = Counter()
    for mask, labels in pairs:
        counts.update(zip(mask, labels, strict=True))
    return [[counts[true, found] for found in range(predicted_classes)] for true in range(true_classes)]


def judge_adapter(matrix: Matrix) -> Segmented:
    """The figures of a model that knows the task's own classes."""
    from train.scores import scores

    found = scores(matrix)
    return Segmented(miou=found.mean_iou, iou=found.iou, mapping=tuple(range(len(matrix))))


def judge_base(matrix: Matrix) -> Segmented:
    """The figures of a model that knows other classes, under the fixed mapping that suits it best."""
    from train.scores import best_mapping, mapped, scores

    mapping = best_mapping(matrix)
    found = scores(mapped(matrix, mapping))
    return Segmented(miou=found.mean_iou, iou=found.iou, mapping=mapping)


def label_bytes(path: Path) -> bytes:
    """The labels in a PNG, row by row, one byte a pixel."""
    from PIL import Image

    with Image.open(path) as image:
        if image.mode not in ("L", "P"):
            raise ValueError(f"{path} is a {image.mode} picture, not one of labels")
        return image.tobytes()
