"""Labels in bands against torch's own interpolation of the whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from hubctl.errors import AdapterError
from serve.engine.labels import enlarged_rows, read_labels

SIZES = [
    ((16, 20), (173, 211)),
    ((16, 20), (64, 80)),
    ((1, 3), (50, 40)),
    ((7, 1), (30, 31)),
    ((40, 30), (40, 30)),
    ((64, 64), (23, 100)),  # fewer rows than the logits have
]


def noise(classes: int, height: int, width: int) -> torch.Tensor:
    return 3 * torch.randn(classes, height, width, generator=torch.Generator().manual_seed(1))


def enlarged(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return functional.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0]


@pytest.mark.parametrize(("small", "size"), SIZES)
def test_bands_are_the_rows_of_the_whole(small: tuple[int, int], size: tuple[int, int]) -> None:
    logits = noise(5, *small)
    bands = [enlarged_rows(logits, size, range(i, min(i + 9, size[0]))) for i in range(0, size[0], 9)]
    assert (torch.cat(bands, dim=1) - enlarged(logits, size)).abs().max() <= 1e-5


@pytest.mark.parametrize(("small", "size"), SIZES)
@pytest.mark.parametrize("rows", [0, 1, 9, 10_000])
def test_labels_and_scores_are_those_of_the_whole(
    small: tuple[int, int], size: tuple[int, int], rows: int
) -> None:
    logits = noise(5, *small)
    labels, scores = read_labels(logits, size, band_bytes=rows * 5 * size[1] * 4)
    probability, want = enlarged(logits, size).softmax(0).max(0)
    assert labels.dtype == np.uint8
    assert (labels == want.numpy()).all()
    assert set(scores) == set(want.unique().tolist())
    for label, score in scores.items():
        assert score == pytest.approx(float(probability[want == label].double().mean()), abs=1e-6)


def test_no_step_takes_much_more_memory_than_a_band() -> None:
    logits, size, band_bytes = noise(150, 32, 32), (1500, 2000), 8 << 20
    with torch.profiler.profile(profile_memory=True) as profile:
        labels, _ = read_labels(logits, size, band_bytes)
    largest = max(event.cpu_memory_usage for event in profile.events())
    assert labels.shape == size
    assert largest < 4 * band_bytes < 150 * 1500 * 2000 * 4


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_no_number_is_refused(value: float) -> None:
    logits = noise(2, 4, 4)
    logits[1, 2, 3] = value
    with pytest.raises(AdapterError, match="came out as NaN"):
        read_labels(logits, (8, 8))
