from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.scores import best_mapping, mapped, scores


def test_scores_of_a_hand_counted_matrix() -> None:
    result = scores([[6, 2, 0], [1, 3, 0], [0, 0, 0]])
    assert result.iou[:2] == pytest.approx((6 / 9, 3 / 6))
    assert math.isnan(result.iou[2])
    assert result.mean_iou == pytest.approx((6 / 9 + 3 / 6) / 2)
    assert result.pixel_accuracy == pytest.approx(9 / 12)


def test_a_class_that_is_never_predicted_counts_as_zero() -> None:
    assert scores([[5, 0], [5, 0]]).iou == (0.5, 0.0)


def test_nothing_counted_gives_no_figure() -> None:
    result = scores([[0, 0], [0, 0]])
    assert math.isnan(result.mean_iou)
    assert math.isnan(result.pixel_accuracy)


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        # object (1) is the pet (0), background (0) is the background (2); the border is lost either way
        ([[1, 90], [10, 12], [80, 3]], (2, 0)),
        # swapped names
        ([[0, 7], [9, 0]], (1, 0)),
        # a prediction that never occurs goes to the first class
        ([[5, 0], [0, 0]], (0, 0)),
        # more predicted classes than true ones
        ([[5, 0, 4], [0, 6, 1]], (0, 1, 0)),
    ],
)
def test_best_mapping(matrix: list[list[int]], expected: tuple[int, ...]) -> None:
    assert best_mapping(matrix) == expected


def test_the_best_mapping_may_differ_from_the_likeliest_class() -> None:
    # Class 2 is rare and both predictions mostly lie elsewhere, but giving it one of them wins.
    matrix = [[10, 60], [0, 0], [9, 0]]
    assert best_mapping(matrix) == (2, 0)


@given(
    st.integers(2, 4).flatmap(
        lambda truths: st.integers(1, 5).flatmap(
            lambda predictions: st.tuples(
                st.lists(
                    st.lists(st.integers(0, 50), min_size=predictions, max_size=predictions),
                    min_size=truths,
                    max_size=truths,
                ),
                st.lists(st.integers(0, truths - 1), min_size=predictions, max_size=predictions),
            )
        )
    )
)
def test_no_mapping_beats_the_best(case: tuple[list[list[int]], list[int]]) -> None:
    matrix, other = case
    best = scores(mapped(matrix, best_mapping(matrix))).mean_iou
    rival = scores(mapped(matrix, other)).mean_iou
    assert math.isnan(best) or best >= rival


@given(st.lists(st.lists(st.integers(0, 50), min_size=40, max_size=40), min_size=3, max_size=3))
def test_with_many_classes_the_mapping_is_still_no_worse_than_the_likeliest(matrix: list[list[int]]) -> None:
    likeliest = [max(range(3), key=lambda true: matrix[true][p]) for p in range(40)]
    best = scores(mapped(matrix, best_mapping(matrix))).mean_iou
    plain = scores(mapped(matrix, likeliest)).mean_iou
    assert math.isnan(best) or best >= plain


@given(st.lists(st.lists(st.integers(0, 9), min_size=3, max_size=3), min_size=2, max_size=2))
def test_mapping_loses_no_pixel(matrix: list[list[int]]) -> None:
    assert sum(map(sum, mapped(matrix, [0, 1, 1]))) == sum(map(sum, matrix))
