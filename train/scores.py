"""Segmentation figures from one confusion matrix: pure, standard library only.

A confusion matrix counts pixels: `matrix[true class][predicted class]`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

Matrix = Sequence[Sequence[int]]

MAX_MAPPINGS = 20_000
"""Up to this many mappings all are tried; beyond it the best is approached class by class."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """How well predictions agree with the masks."""

    iou: tuple[float, ...]
    """Intersection over union of each class; NaN for a class that neither occurs nor is predicted."""
    mean_iou: float
    """Mean over the classes that occur or are predicted."""
    dice: tuple[float, ...]
    """Twice the intersection over the sum of both, of each class."""
    mean_dice: float
    pixel_accuracy: float


def scores(matrix: Matrix) -> Scores:
    """Figures over a whole data set, not means over its images."""
    size = len(matrix)
    predicted = [sum(matrix[true][column] for true in range(size)) for column in range(size)]
    iou = []
    for number in range(size):
        hit = matrix[number][number]
        union = sum(matrix[number]) + predicted[number] - hit
        iou.append(hit / union if union else math.nan)
    total = sum(predicted)
    hits = sum(matrix[number][number] for number in range(size))
    dice = [2 * value / (1 + value) for value in iou]
    return Scores(
        iou=tuple(iou),
        mean_iou=_mean(iou),
        dice=tuple(dice),
        mean_dice=_mean(dice),
        pixel_accuracy=hits / total if total else math.nan,
    )


def renumbered(matrix: Matrix, numbers: Sequence[int], count: int) -> list[list[int]]:
    """The matrix with `count` true classes, where the truth's class t is `numbers[t]`."""
    rows = [[0] * len(matrix[0]) for _ in range(count)]
    for number, row in zip(numbers, matrix, strict=True):
        rows[number] = [before + more for before, more in zip(rows[number], row, strict=True)]
    return rows


def best_mapping(matrix: Matrix) -> tuple[int, ...]:
    """The fixed mapping of predicted classes to true ones with the highest mean IoU.

    `matrix[true class][predicted class]` need not be square: a base knows other classes than the task.
    Entry p of the answer is the true class that predictions of class p count as. The first of equals wins.
    """
    truths, predictions = len(matrix), len(matrix[0])
    used = [p for p in range(predictions) if any(row[p] for row in matrix)]
    # The likeliest true class of each prediction: also what unused predictions are mapped to.
    likeliest = [max(range(truths), key=lambda true: matrix[true][p]) for p in range(predictions)]
    if truths ** len(used) > MAX_MAPPINGS:
        return _climb(matrix, likeliest, used)
    best, best_score = tuple(likeliest), -1.0
    for choice in itertools.product(range(truths), repeat=len(used)):
        mapping = list(likeliest)
        for prediction, true in zip(used, choice, strict=True):
            mapping[prediction] = true
        score = scores(mapped(matrix, mapping)).mean_iou
        if score > best_score:
            best, best_score = tuple(mapping), score
    return best


def mapped(matrix: Matrix, mapping: Sequence[int]) -> list[list[int]]:
    """The square confusion matrix after counting each predicted class as `mapping` says."""
    square = [[0] * len(matrix) for _ in matrix]
    for true, row in enumerate(matrix):
        for prediction, count in enumerate(row):
            square[true][mapping[prediction]] += count
    return square


def _mean(values: Sequence[float]) -> float:
    counted = [value for value in values if not math.isnan(value)]
    return sum(counted) / len(counted) if counted else math.nan


def _climb(matrix: Matrix, start: Sequence[int], used: Sequence[int]) -> tuple[int, ...]:
    """Change one prediction's class at a time for as long as that helps."""
    mapping = list(start)
    score = scores(mapped(matrix, mapping)).mean_iou
    improved = True
    while improved:
        improved = False
        for prediction, true in itertools.product(used, range(len(matrix))):
            changed = [*mapping]
            changed[prediction] = true
            changed_score = scores(mapped(matrix, changed)).mean_iou
            if changed_score > score:
                mapping, score, improved = changed, changed_score, True
    return tuple(mapping)
