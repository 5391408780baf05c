from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest

from hubctl.errors import InputError
from hubctl.families import FAMILIES, Family, class_count, detect_family


def folder(tmp_path: Path, files: dict[str, object]) -> Path:
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return tmp_path


SD = {"_class_name": "StableDiffusionPipeline"}


@pytest.mark.parametrize(
    ("files", "name"),
    [
        ({"model_index.json": SD, "unet/config.json": {"cross_attention_dim": 768}}, "sd1"),
        ({"model_index.json": SD, "unet/config.json": {"cross_attention_dim": 1024}}, "sd2"),
        ({"model_index.json": SD}, "sd1"),
        ({"model_index.json": {"_class_name": "StableDiffusionXLPipeline"}}, "sdxl"),
        ({"model_index.json": {"_class_name": "StableDiffusion3Pipeline"}}, "sd3"),
        ({"model_index.json": {"_class_name": "FluxPipeline"}}, "flux"),
        ({"config.json": {"architectures": ["SegformerForSemanticSegmentation"]}}, "segformer"),
        ({"config.json": {"architectures": ["UperNetForSemanticSegmentation"]}}, "upernet"),
        ({"model_index.json": SD, "config.json": {"architectures": ["Other"]}}, "sd1"),
    ],
)
def test_detect(tmp_path: Path, files: dict[str, object], name: str) -> None:
    assert detect_family(folder(tmp_path, files)).name == name


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "neither model_index.json nor config.json"),
        (
            {"model_index.json": {"_class_name": "WanPipeline"}},
            "holds WanPipeline, which hubctl does not run",
        ),
        (
            {"model_index.json": SD, "unet/config.json": {"cross_attention_dim": 768, "in_channels": 9}},
            "takes 9 channels and gives 4",
        ),
        ({"config.json": {"architectures": ["BertModel"]}}, "holds BertModel"),
        ({"config.json": {}}, "an unnamed model"),
        ({"config.json": {"architectures": 5}}, "an unnamed model"),
        ({"config.json": "{"}, "cannot read"),
        ({"config.json": []}, "not a JSON object"),
    ],
)
def test_other_folders_are_refused(tmp_path: Path, files: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        detect_family(folder(tmp_path, files))


@pytest.mark.parametrize(
    "labels",
    [
        {},
        {"num_labels": 300},
        {"id2label": {"0": "a", "1": "b", "2": "c"}},
        {"num_labels": 5, "id2label": {"0": "a"}},
    ],
    ids=str,
)
def test_classes_are_counted_as_transformers_counts_them(tmp_path: Path, labels: dict[str, object]) -> None:
    from transformers import AutoConfig

    base = folder(tmp_path, {"config.json": {"model_type": "segformer", **labels}})
    assert class_count(base) == AutoConfig.from_pretrained(base).num_labels


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_families_are_what_the_libraries_have(family: Family) -> None:
    import diffusers
    import transformers

    from hubctl.modeling import linear_segmenter

    for name in family.classes:
        if family.task == "image-segmentation":
            assert hasattr(transformers, name) or hasattr(linear_segmenter, name)
            assert family.components == ("model",)
            continue
        pipeline = getattr(diffusers, name)
        parts = set(inspect.signature(pipeline.__init__).parameters)
        assert set(family.components) <= parts
        assert set(family.components) <= set(pipeline._lora_loadable_modules)
        denoiser = (
            diffusers.UNet2DConditionModel if family.denoiser == "unet" else diffusers.FluxTransformer2DModel
        )
        if family.unbatched:
            assert set(family.unbatched) <= set(inspect.signature(denoiser.forward).parameters)
