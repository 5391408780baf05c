"""The demo's figures and pictures, by hand-worked examples."""

from __future__ import annotations

import pytest

from hubctl.demo.board import progress_line
from hubctl.demo.figures import confusion, hit_rate, judge_adapter, judge_base
from hubctl.demo.pictures import curve, running_mean


def test_hit_rate_counts_the_wanted_style() -> None:
    assert hit_rate(["line", "noto", "line", "twemoji"], "line") == 0.5


def test_confusion_leaves_ignored_pixels_out() -> None:
    pairs = [(bytes([0, 0, 1, 255]), bytes([0, 1, 1, 0])), (bytes([2, 2]), bytes([0, 1]))]
    assert confusion(pairs, true_classes=3, predicted_classes=2) == [[1, 1], [0, 1], [1, 1]]


def test_the_base_gets_the_mapping_that_suits_it_best() -> None:
    # Class 1 of the base is mostly the task's class 0, and the other way round.
    found = judge_base([[1, 9], [9, 1]])
    assert found.mapping == (1, 0)
    assert found.miou == pytest.approx(9 / 11)


def test_the_adapter_is_judged_by_its_own_classes() -> None:
    found = judge_adapter([[9, 1], [1, 9]])
    assert list(found.iou) == pytest.approx([9 / 11, 9 / 11])
    assert found.mapping == (0, 1)


def test_a_curve_spans_its_box_and_clips_the_wildest_step() -> None:
    drawn = curve([2.0, 1.0, 0.5], width=100, height=50)
    assert drawn is not None
    points = [tuple(map(float, point.split(","))) for point in drawn.raw.split()]
    assert [x for x, _ in points] == [0, 50, 100]
    assert all(0 <= y <= 50 for _, y in points)
    assert points[0][1] < points[1][1] < points[2][1]  # SVG counts downwards
    assert curve([1.0], width=100, height=50) is None


def test_running_mean_begins_with_what_there_is() -> None:
    assert running_mean([1, 3, 5, 7], 2) == [1, 2, 4, 6]


@pytest.mark.parametrize(
    ("done", "total", "line"),
    [(None, None, "40 s so far"), (0, 10, "40 s so far"), (20, 100, "20 of 100, 2 min 40 s left")],
)
def test_progress_in_words(done: float | None, total: float | None, line: str) -> None:
    assert progress_line(done, total, 40) == line
