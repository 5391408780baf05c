"""`hubctl train ... --plan`: real steps, true sizes, and nothing written."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests.cli import run_cli
from tests.train.conftest import Trained
from train.events import Planned, Started
from train.measure import measure


@pytest.mark.parametrize("task", ["style", "subject", "trimap"])
def test_the_plan_tells_what_training_then_takes(
    task: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    trained: Trained = request.getfixturevalue(task)
    class_data = tmp_path / "class" if trained.config.class_data else None
    config = dataclasses.replace(
        trained.config,
        output=tmp_path / "out",
        class_data=class_data,
        steps=1000,
        batch_size=3,
        accumulation=2,
    )
    plan = list(measure(config))[-1]
    assert isinstance(plan, Planned)
    started = next(event for event in trained.events if isinstance(event, Started))
    assert plan.trainable_parameters == started.trainable_parameters
    weights = next(trained.folder.glob("*.safetensors")).stat().st_size
    # What the file has besides: its header.
    assert plan.adapter_bytes <= weights <= plan.adapter_bytes + 16_384
    assert plan.duration_s == pytest.approx(1000 / plan.steps_per_s)
    assert 0 < plan.peak_memory_bytes < plan.memory_bytes
    assert (plan.batch_size, plan.accumulation, plan.changes) == (3, 2, ())
    assert plan.class_images_to_draw == (config.num_class_images if class_data else 0)
    assert list(tmp_path.iterdir()) == []


def test_the_command_prints_it_and_writes_nothing(tmp_path: Path, style: Trained) -> None:
    arguments = (
        "train", "text-to-image", "--base", style.base, "--data", style.config.data,
        "--output", tmp_path / "out", "--plan",
    )  # fmt: skip
    done = run_cli(*arguments)
    assert done.code == 0, done.err
    assert "fits       yes" in done.out
    assert run_cli(*arguments, "--json").json()["steps"] == 400
    assert list(tmp_path.iterdir()) == []
