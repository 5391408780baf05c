"""From logits to labels at an image's own size, in bands of rows: what a large image takes is bounded.

Shapes: C classes, h x w logits, H x W pixels of the image, R rows of one band.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional

from hubctl.errors import AdapterError

_BAND_BYTES = 16 << 20  # of enlarged logits; some three times as much is in use at once


def read_labels(
    logits: torch.Tensor, size: Sequence[int], band_bytes: int = _BAND_BYTES
) -> tuple[np.ndarray, dict[int, float]]:
    """Labels (H, W) uint8 at `size`, and each label's mean probability where it won.

    Args:
        logits: (C, h, w), floating point.
        size: H and W.
        band_bytes: what the enlarged logits may take at once; one row is the least.

    Raises:
        AdapterError: the logits hold NaN or infinity.
    """
    if not logits.numel() or not logits.isfinite().all():
        raise AdapterError("the labels came out as NaN", hint="lower the scale of the adapter")
    logits, classes, (height, width) = logits.float(), len(logits), size
    rows = max(1, band_bytes // (4 * classes * width))
    labels = np.empty((height, width), np.uint8)
    pixels, total = torch.zeros(2, classes, dtype=torch.float64)
    for top in range(0, height, rows):
        band = enlarged_rows(logits, size, range(top, min(top + rows, height)))
        probability, label = (part.flatten().cpu() for part in band.softmax(0).max(0))
        labels[top : top + rows] = label.view(-1, width).numpy()
        pixels += torch.bincount(label, minlength=classes)
        total += torch.bincount(label, probability.double(), minlength=classes)
    scores = {label: float(total[label] / n) for label, n in enumerate(pixels.tolist()) if n}
    return labels, scores


def enlarged_rows(logits: torch.Tensor, size: Sequence[int], rows: range) -> torch.Tensor:
    """Some rows (C, R, W) of what `functional.interpolate(..., mode="bilinear")` makes of all the logits.

    The same arithmetic, in the same order: a row of the result lies between two rows of the logits, at
    (row + 1/2) h / H - 1/2 (`align_corners=False`), and columns likewise.
    """
    height = logits.shape[1]
    at = ((torch.arange(rows.start, rows.stop) + 0.5) * (height / size[0]) - 0.5).clamp(min=0)
    above = at.long().clamp(max=height - 1)
    below = (above + 1).clamp(max=height - 1)
    share = (at - above).clamp(max=1)[:, None].to(logits.device)
    first, last = int(above[0]), int(below[-1])
    # As high as before, so that only the columns are interpolated here.
    part = logits[None, :, first : last + 1]
    wide = functional.interpolate(part, (part.shape[2], size[1]), mode="bilinear", align_corners=False)[0]
    above, below = ((row - first).to(logits.device) for row in (above, below))
    return wide[:, above] * (1 - share) + wide[:, below] * share
