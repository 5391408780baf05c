"""Against the backbone alone, as transformers loads and runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import (
    AutoModel,
    Dinov2ForImageClassification,
    Dinov2Model,
    Dinov2WithRegistersForImageClassification,
    DINOv3ViTModel,
    ViTForImageClassification,
    ViTModel,
)

from hubctl.adapter.base_shapes import read_base_shapes
from hubctl.adapter.names import current_name, renames
from hubctl.families import detect_family
from hubctl.modeling.linear_segmenter import LinearSegmenter
from hubctl.modeling.loading import load_segmenter
from tests.serve.segmenters import SEGMENTERS, write_segmenter

LABELS = {0: "sky", 1: "sea", 2: "land"}
BACKBONES = {
    ViTModel: "linear-vit",
    ViTForImageClassification: "linear-vit",
    Dinov2Model: "linear-dinov2",
    Dinov2ForImageClassification: "linear-dinov2",
    Dinov2WithRegistersForImageClassification: "linear-dinov2-registers",
    DINOv3ViTModel: "linear-dinov3",
}
FIRST_PATCH = {"linear-dinov2-registers": 5, "linear-dinov3": 4}  # after class and register tokens


@pytest.fixture(scope="module", params=BACKBONES, ids=lambda kind: kind.__name__)
def backbone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder as transformers itself writes it, and which of `SEGMENTERS` it is below the head."""
    name = BACKBONES[request.param]
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("backbone")
    request.param(SEGMENTERS[name].config.backbone_config).save_pretrained(folder)
    return folder, name


def pixels(height: int, width: int) -> torch.Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


def logits(model: Any, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(pixel_values=images).logits
    return found


@pytest.mark.parametrize("name", ["beit", "linear-vit"])
def test_weights_of_a_variant_alone_are_found(tmp_path: Path, name: str) -> None:
    base, images = write_segmenter(tmp_path / "base", name), pixels(64, 64)
    plain = logits(load_segmenter(base), images)
    (base / "model.safetensors").rename(base / "model.fp16.safetensors")
    torch.testing.assert_close(logits(load_segmenter(base), images), plain, rtol=0, atol=0)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (96, 64), (40, 48)])
def test_logits_are_one_linear_layer_of_the_patches(
    backbone: tuple[Path, str], height: int, width: int
) -> None:
    folder, name = backbone
    model: Any = load_segmenter(folder, LABELS)
    alone = AutoModel.from_pretrained(folder).eval()
    options = {"interpolate_pos_encoding": True} if name == "linear-vit" else {}
    images = pixels(height, width)
    with torch.no_grad():
        tokens = alone(images, **options).last_hidden_state[:, FIRST_PATCH.get(name, 1) :]
        head = model.classifier
        want = tokens @ head.weight.flatten(1).T + head.bias
    found = logits(model, images)
    assert found.shape == (2, 3, height // 8, width // 8)
    assert (found - want.mT.reshape(found.shape)).abs().max() <= 1e-5


def test_what_is_saved_loads_again(backbone: tuple[Path, str], tmp_path: Path) -> None:
    model = load_segmenter(backbone[0], LABELS)
    model.save_pretrained(tmp_path)
    assert detect_family(tmp_path).name == "linear-segmenter"
    again: Any = load_segmenter(tmp_path)
    assert isinstance(again, LinearSegmenter)
    assert again.config.id2label == LABELS
    assert torch.equal(logits(again, pixels(64, 64)), logits(model, pixels(64, 64)))
    other: Any = load_segmenter(tmp_path, {0: "a", 1: "b"})
    assert other.classifier.out_channels == 2
    assert other.config.id2label == {0: "a", 1: "b"}
    learnt = again.backbone.state_dict()
    assert all(torch.equal(tensor, learnt[name]) for name, tensor in other.backbone.state_dict().items())


def test_shapes_of_a_backbone_are_those_under_the_head(backbone: tuple[Path, str]) -> None:
    family = detect_family(backbone[0])
    assert family.headless
    memory = {name: tuple(tensor.shape) for name, tensor in load_segmenter(backbone[0]).state_dict().items()}
    rules = renames("model", memory)
    want = {current_name(name, rules): shape for name, shape in memory.items()}
    want |= {"classifier.weight": (0, 16, 1, 1), "classifier.bias": (0,)}
    assert read_base_shapes(backbone[0], family)["model"] == want


def test_an_image_between_two_numbers_of_patches_counts_whole(tmp_path: Path) -> None:
    model = load_segmenter(write_segmenter(tmp_path, "linear-dinov2"))
    images = pixels(69, 59)
    resized = functional.interpolate(images, size=(72, 56), mode="bilinear", align_corners=False)
    assert torch.equal(logits(model, images), logits(model, resized))
    assert logits(model, pixels(3, 3)).shape == (2, 2, 1, 1)
