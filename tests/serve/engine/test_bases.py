"""Bases that lack what most have, or have more of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import TCDScheduler
from transformers import AutoModelForSemanticSegmentation

from hubctl.base_models import locate_base
from hubctl.errors import InputError
from serve.engine.config import EngineConfig
from serve.engine.engine import open_engine
from serve.engine.generate import ImageEngine
from serve.engine.requests import ImageRequest, SegmentRequest
from serve.engine.segment import SegmentEngine
from tests.adapters import write_base
from tests.serve import reference, segmenters, tiny, tiny_pipelines
from tests.serve.segmenters import SEGMENTERS

ASK = ImageRequest(prompt="red apple", seed=1, num_inference_steps=2, width=32, height=32)


def image_engine(base: Path) -> ImageEngine:
    return ImageEngine(locate_base(str(base)), tiny.engine_config(), tiny.fetch)


def segment_engine(base: Path) -> SegmentEngine:
    return SegmentEngine(locate_base(str(base)), tiny.engine_config(), tiny.fetch)


def test_weights_of_a_variant_alone_are_found(tmp_path: Path) -> None:
    plain = tiny_pipelines.write_pipeline(tmp_path / "plain", "sd1")
    pipeline = tiny.load_pipeline(plain)
    pipeline.save_pretrained(tmp_path / "half", variant="fp16")
    engine = image_engine(tmp_path / "half")
    try:
        assert np.abs(engine.generate_floats(ASK) - reference.images(plain, ASK)).max() <= reference.TOLERANCE
    finally:
        engine.close()


def test_a_variant_beside_the_plain_weights_is_left_alone(tmp_path: Path) -> None:
    base = tiny_pipelines.write_pipeline(tmp_path / "base", "sd1")
    want = reference.images(base, ASK)
    pipeline = tiny.load_pipeline(base)
    with torch.no_grad():
        pipeline.unet.conv_out.weight.zero_()
    pipeline.unet.save_pretrained(base / "unet", variant="fp16")
    engine = image_engine(base)
    try:
        assert np.abs(engine.generate_floats(ASK) - want).max() <= reference.TOLERANCE
    finally:
        engine.close()


def test_a_base_with_tcd_takes_the_other_schedulers(tmp_path: Path) -> None:
    base = tiny_pipelines.write_pipeline(tmp_path / "base", "sd1")
    TCDScheduler.from_config(tiny.load_pipeline(base).scheduler.config).save_pretrained(base / "scheduler")
    tiny.rewrite_config(base, "model_index.json", scheduler=["diffusers", "TCDScheduler"])
    engine = image_engine(base)
    try:
        for scheduler in (None, "ddim", "euler"):
            request = dataclasses.replace(ASK, scheduler=scheduler)
            got = engine.generate_floats(request)
            assert np.abs(got - reference.images(base, request)).max() <= reference.TOLERANCE
    finally:
        engine.close()


def write_classes(folder: Path, count: int) -> Path:
    """A SegFormer with `count` classes."""
    config = SEGMENTERS["segformer"].config.__class__(
        **SEGMENTERS["segformer"].config.to_dict() | {"id2label": {i: str(i) for i in range(count)}}
    )
    base = segmenters.write_segmenter(folder, "segformer")
    AutoModelForSemanticSegmentation.from_config(config).save_pretrained(base)
    return base


def test_more_classes_than_labels_can_name_are_refused_at_the_start(tmp_path: Path) -> None:
    base = write_classes(tmp_path / "base", 257)
    (base / "model.safetensors").unlink()  # refused by its config.json, before weights are looked for
    with pytest.raises(InputError, match=r"has 257 classes \(limit 256\)"):
        segment_engine(base)
    segment_engine(write_classes(tmp_path / "most", 256)).close()


def test_classes_that_the_config_does_not_name_are_numbered(tmp_path: Path) -> None:
    base = segmenters.write_segmenter(tmp_path / "base", "segformer")
    tiny.rewrite_config(base, "config.json", id2label={"1": "pet", "2": "border"})
    engine = segment_engine(base)
    try:
        image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
        result = engine.segment(SegmentRequest(image=image))
        assert result.id2label == {0: "class 0", 1: "pet"}
        assert set(result.scores) <= set(result.id2label)
    finally:
        engine.close()


def test_a_device_that_is_not_here_is_refused_before_anything_loads(tmp_path: Path) -> None:
    base = locate_base(str(write_base(tmp_path / "base")))
    with pytest.raises(InputError, match="no device 'cuda:99' here"):
        open_engine(base, EngineConfig(device="cuda:99"), tiny.fetch)
