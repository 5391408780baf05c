"""A base is fed the same pixels in training, in judging and by the server: what its own processor makes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hubctl.errors import InputError
from hubctl.modeling.picture_input import picture_input
from tests.serve import reference
from tests.serve.segmenters import SEGMENTERS
from tests.train import tiny
from train.base_size import native_px
from train.tasks.segmentation import load_pictures


@pytest.mark.parametrize("name", SEGMENTERS)
def test_every_kind_of_base_is_fed_as_its_processor_does(tmp_path: Path, name: str) -> None:
    SEGMENTERS[name].config.save_pretrained(tmp_path)
    SEGMENTERS[name].processor.save_pretrained(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (30, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    fed = picture_input(tmp_path)
    assert fed.size_px == (native_px(tmp_path),) * 2
    ours = fed.normalise(load_pictures([tmp_path / "wide.png"], fed).float() / 255)
    assert (ours - reference.processed(tmp_path, pixels)).abs().max() <= 1e-5


@pytest.mark.parametrize(
    ("settings", "mean", "std"),
    [
        ({}, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ({"image_mean": 0.5, "image_std": 0.25}, (0.5,) * 3, (0.25,) * 3),
        ({"do_normalize": False}, (0, 0, 0), (1, 1, 1)),
        ({"rescale_factor": 2 / 255, "image_mean": 1, "image_std": 1}, (0.5,) * 3, (0.5,) * 3),
    ],
)
def test_settings_of_the_processor_are_heeded(
    tmp_path: Path, settings: dict[str, object], mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    base = tiny.segmentation_base(tmp_path / "base")
    size = {"image_processor_type": "SegformerImageProcessor", "size": {"height": 32, "width": 32}}
    (base / "preprocessor_config.json").write_text(json.dumps(size | settings))
    fed = picture_input(base)
    assert torch.allclose(fed.mean.flatten(), torch.tensor(mean, dtype=torch.float32), atol=1e-5)
    assert torch.allclose(fed.std.flatten(), torch.tensor(std, dtype=torch.float32), atol=1e-5)


def test_a_narrow_picture_stays_as_small_as_the_base_wants_it(tmp_path: Path) -> None:
    SEGMENTERS["mobilenet-v2"].config.save_pretrained(tmp_path)
    SEGMENTERS["mobilenet-v2"].processor.save_pretrained(tmp_path)
    assert picture_input(tmp_path).squeeze(Image.new("RGB", (4000, 1))).shape == (64, 64, 3)


@pytest.mark.parametrize(
    "text", ["not json", '{"image_processor_type": "None"}', '{"image_mean": [0.5, 0.5]}']
)
def test_a_processor_that_does_not_work_is_named(tmp_path: Path, text: str) -> None:
    base = tiny.segmentation_base(tmp_path / "base")
    (base / "preprocessor_config.json").write_text(text)
    with pytest.raises(InputError, match=r"preprocessor_config\.json"):
        picture_input(base)
    if text == "not json":
        with pytest.raises(InputError, match=r"preprocessor_config\.json is not JSON"):
            native_px(base)
