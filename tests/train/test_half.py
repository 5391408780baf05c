"""The frozen base in half precision, as a GPU keeps it: whole trainings of every task and family."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

from tests.serve.segmenters import write_segmenter
from tests.serve.tiny_pipelines import write_pipeline
from tests.train.conftest import Trained, run
from train.config import TrainConfig
from train.events import Evaluated, Sampled, Verified


def test_the_frozen_base_is_kept_in_half_precision_where_it_is_asked_for() -> None:
    from train.devices import open_accelerator

    assert open_accelerator("bf16")[1] == torch.bfloat16
    assert open_accelerator("no")[1] == torch.float32


def _whole(config: TrainConfig) -> None:
    trained = run(dataclasses.replace(config, mixed_precision="bf16", sample_every=1, steps=2))
    assert [event for event in trained.events if isinstance(event, Sampled)]
    (metrics,) = (event.metrics for event in trained.events if isinstance(event, Evaluated))
    assert all(value == value for value in metrics.values())
    # The training itself refuses what answers otherwise once it is loaded.
    assert any(isinstance(event, Verified) for event in trained.events)


@pytest.mark.parametrize("kind", ["sd1", "sdxl", "sd3", "flux"])
def test_text_to_image(tmp_path: Path, captioned: Path, kind: str) -> None:
    base = write_pipeline(tmp_path / kind, kind)
    _whole(
        TrainConfig(
            task="text-to-image", base=str(base), data=captioned, output=tmp_path / "out", resolution=32,
            batch_size=2, rank=4, hold_out=0.5, sample_prompts=("red apple",),
        )
    )  # fmt: skip


def test_dreambooth_draws_its_class_images(tmp_path: Path, subject: Trained) -> None:
    _whole(dataclasses.replace(subject.config, output=tmp_path / "out", class_data=tmp_path / "class"))
    assert len(list((tmp_path / "class").glob("*.png"))) == 3


def test_text_encoders_train_along_where_a_base_is_published_as_a_variant_alone(
    tmp_path: Path, style: Trained
) -> None:
    base = shutil.copytree(style.base, tmp_path / "base")
    for weights in list(base.rglob("*.safetensors")):
        weights.rename(weights.with_suffix(".fp16.safetensors"))
    config = dataclasses.replace(style.config, base=str(base), output=tmp_path / "out")
    _whole(dataclasses.replace(config, train_text_encoder=True))


def test_new_words_train_along(tmp_path: Path, subject: Trained) -> None:
    config = dataclasses.replace(subject.config, output=tmp_path / "out", class_prompt=None, class_data=None)
    _whole(dataclasses.replace(config, instance_prompt="a photo of <tok>", new_tokens=("<tok>=dog",)))


@pytest.mark.parametrize("kind", ["trimap", "beit", "dpt", "mobilevit", "upernet-swin", "linear-vit"])
def test_segmentation(tmp_path: Path, trimap: Trained, kind: str) -> None:
    base = trimap.config.base
    if kind != "trimap":
        base = str(write_segmenter(tmp_path / kind, kind))
    _whole(dataclasses.replace(trimap.config, output=tmp_path / "out", base=base, hold_out=0.3))
