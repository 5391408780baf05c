from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from hubctl.errors import InputError
from train.config import TrainConfig


def config(**changes: Any) -> TrainConfig:
    settings: dict[str, Any] = {
        "task": "text-to-image",
        "base": "emoji-64",
        "data": Path("data"),
        "output": Path("out"),
    }
    return TrainConfig(**(settings | changes))


def test_the_defaults_are_sound_and_frozen() -> None:
    made = config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.rank = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "video"}, "unknown task 'video'"),
        ({"base": " "}, "no base model is named"),
        ({"steps": 0}, "--steps is 0"),
        ({"batch_size": -1}, "--batch-size is -1"),
        ({"rank": 0}, "--rank is 0"),
        ({"alpha": 0.0}, "--alpha is 0.0"),
        ({"learning_rate": float("nan")}, "--lr is nan"),
        ({"learning_rate": float("inf")}, "--lr is inf"),
        ({"seed": -1}, "--seed is -1"),
        ({"resolution": 63}, "--resolution is 63"),
        ({"caption_dropout": 1.5}, "--caption-dropout is 1.5"),
        ({"sample_every": -5}, "--sample-every is -5"),
        ({"optimizer": "prodigy", "lora_plus": 16.0}, "prodigy finds one rate"),
        ({"min_snr": 0.0}, "--min-snr is 0.0"),
        ({"noise_offset": 1.0}, "--noise-offset is 1.0"),
        ({"hold_out": 0.9}, "--hold-out is 0.9"),
        ({"schedule": "step"}, "--schedule is 'step'"),
        ({"resume": True, "restart": True}, "not both"),
        ({"mixed_precision": "int4"}, "--mixed-precision is 'int4'"),
        ({"targets": ("attention", "")}, "no layer to adapt is named"),
        ({"instance_prompt": "a dog"}, "text-to-image takes its captions from the data folder"),
        ({"task": "dreambooth"}, "dreambooth needs the prompt that names your subject"),
        (
            {"task": "dreambooth", "instance_prompt": "tok dog", "class_data": Path("dogs")},
            "class images need the prompt that names their class",
        ),
        (
            {"task": "dreambooth", "instance_prompt": "tok dog", "prior_weight": -1.0},
            "--prior-weight is -1.0",
        ),
        ({"weight_decay": float("nan")}, "--weight-decay is nan"),
        (
            {"task": "dreambooth", "instance_prompt": "tok dog", "prior_weight": float("inf")},
            "--prior-weight is inf",
        ),
    ],
)
def test_faults_are_named_with_the_next_step(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        config(**changes)
    assert message in caught.value.message
    assert caught.value.hint
