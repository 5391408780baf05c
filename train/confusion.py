"""Judging a segmentation model: one confusion matrix over a data set, at the masks' own resolution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch.nn import functional
from torchmetrics.classification import MulticlassConfusionMatrix

from train.masks import IGNORED, MaskedImage

BATCH = 16

Predict = Callable[[Sequence[Path]], torch.Tensor]
"""Images to logits, [B, classes, h, w]."""


@torch.no_grad()
def confusion(
    predict: Predict, items: Sequence[MaskedImage], *, true_classes: int, predicted_classes: int
) -> list[list[int]]:
    """Pixels counted as `matrix[true class][predicted class]` over all items; ignored pixels left out."""
    counter = MulticlassConfusionMatrix(
        num_classes=max(true_classes, predicted_classes), ignore_index=IGNORED
    )
    for start in range(0, len(items), BATCH):
        batch = items[start : start + BATCH]
        logits = predict([item.path for item in batch]).float().cpu()
        for item, scores in zip(batch, logits, strict=True):
            mask = torch.from_numpy(item.classes()).long()
            counter.update(labels_at(scores, tuple(mask.shape))[None], mask[None])
    matrix: list[list[int]] = counter.compute().tolist()
    return [row[:predicted_classes] for row in matrix[:true_classes]]


def labels_at(logits: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    """The likeliest class of each pixel, [height, width] as in `size`, from logits [classes, h, w]."""
    enlarged = functional.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)
    return enlarged[0].argmax(dim=0)
