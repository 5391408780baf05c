from __future__ import annotations

import json
import struct
from math import prod
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModelWithProjection

from hubctl.adapter import gate as limits
from hubctl.adapter.base_shapes import read_base_shapes
from hubctl.adapter.contents import Dialect
from hubctl.adapter.derive import convert
from hubctl.adapter.gate import gate
from hubctl.base_models import BaseModel, locate_base
from hubctl.errors import AdapterError, AdapterMismatchError, InputError
from tests.hubctl.adapter.raw import container, diffusers_folder, pair, peft_folder
from tests.serve.tiny_pipelines import write_pipeline
from tests.train.tiny import diffusion_base, segmentation_base

DIALECTS: tuple[Dialect, ...] = ("diffusers", "peft")
TO_Q = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return locate_base(str(diffusion_base(tmp_path_factory.mktemp("bases") / "sd")))


@pytest.fixture(scope="module")
def segformer(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return locate_base(str(segmentation_base(tmp_path_factory.mktemp("bases") / "seg")))


def test_base_shapes_are_those_in_memory(sd: BaseModel, segformer: BaseModel) -> None:
    from diffusers import StableDiffusionPipeline
    from transformers import SegformerForSemanticSegmentation

    pipe = StableDiffusionPipeline.from_pretrained(sd.path)
    for component, shapes in read_base_shapes(sd.path, sd.family).items():
        memory = {name: tuple(t.shape) for name, t in getattr(pipe, component).state_dict().items()}
        assert shapes == memory
    model = SegformerForSemanticSegmentation.from_pretrained(segformer.path)
    shapes = read_base_shapes(segformer.path, segformer.family)["model"]
    assert shapes == {name: tuple(t.shape) for name, t in model.state_dict().items()}


def test_shards_and_variants_have_the_same_shapes(sd: BaseModel, tmp_path: Path) -> None:
    from diffusers import UNet2DConditionModel

    whole = read_base_shapes(sd.path, sd.family)["unet"]
    unet = UNet2DConditionModel.from_pretrained(sd.path, subfolder="unet")
    unet.save_pretrained(tmp_path / "shards/unet", max_shard_size="100KB")
    unet.save_pretrained(tmp_path / "variant/unet", variant="fp16")
    assert len(list((tmp_path / "shards/unet").glob("*.safetensors"))) > 1
    for folder in ("shards", "variant"):
        assert read_base_shapes(tmp_path / folder, sd.family)["unet"] == whole


def test_a_base_without_safetensors_is_explained(sd: BaseModel, tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    with pytest.raises(InputError, match="has no safetensors weights"):
        read_base_shapes(tmp_path, sd.family)
    (tmp_path / "unet/model.safetensors").write_bytes(b"broken")
    with pytest.raises(InputError, match="the base model is broken"):
        read_base_shapes(tmp_path, sd.family)


def test_a_sound_adapter_passes_with_its_base_and_without(sd: BaseModel, tmp_path: Path) -> None:
    folder = diffusers_folder(
        tmp_path, pair(f"unet.{TO_Q}", ins=16, outs=16), {"unet.r": 2, "unet.lora_alpha": 3}
    )
    (folder / "README.md").write_text("a card")
    assert gate(folder, sd).modules[0].scale == 1.5
    assert gate(folder, None).modules[0].module == TO_Q


def test_a_real_peft_adapter_passes_only_its_base(
    sd: BaseModel, segformer: BaseModel, tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import SegformerForSemanticSegmentation

    model = SegformerForSemanticSegmentation.from_pretrained(
        segformer.path, num_labels=3, ignore_mismatched_sizes=True
    )
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], modules_to_save=["decode_head"])
    get_peft_model(model, config).save_pretrained(tmp_path)
    (tmp_path / "README.md").unlink()
    layout = gate(tmp_path, segformer)
    assert len(layout.modules) == 4
    with pytest.raises(AdapterMismatchError) as caught:
        gate(tmp_path, sd)
    assert f"does not fit {sd.path} (0 of " in caught.value.message
    assert caught.value.hint == "its shapes look like a transformers model: name that base"


CLASSIFIER, FUSE = "base_model.model.decode_head.classifier", "base_model.model.decode_head.linear_fuse"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({}, ""),
        ({f"{CLASSIFIER}.bias": None}, r"lacks 'decode_head\.classifier\.bias'"),
        ({f"{CLASSIFIER}.bias": (2,)}, "'decode_head.classifier' has another width"),
        ({f"{FUSE}.lora_A.weight": (2, 8, 1, 1)}, "'model.decode_head.linear_fuse' is 16x32x1x1 in the base"),
        ({f"{FUSE}.lora_B.weight": (8, 2, 1, 1)}, "the adapter was made for 8x32x1x1"),
        ({f"{FUSE}.lora_B.weight": None}, "linear_fuse"),
    ],
)  # fmt: skip
def test_a_head_may_be_part_whole_and_part_lora(
    segformer: BaseModel, tmp_path: Path, changes: dict[str, tuple[int, ...] | None], problem: str
) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import SegformerForSemanticSegmentation

    model = SegformerForSemanticSegmentation.from_pretrained(
        segformer.path, num_labels=3, ignore_mismatched_sizes=True
    )
    config = LoraConfig(
        r=2, target_modules=["q_proj", "decode_head.linear_fuse"], modules_to_save=["decode_head.classifier"]
    )
    get_peft_model(model, config).save_pretrained(tmp_path)
    (tmp_path / "README.md").unlink()
    weights = tmp_path / "adapter_model.safetensors"
    tensors = load_file(weights)
    for name, shape in changes.items():
        del tensors[name]
        if shape:
            tensors[name] = torch.zeros(shape)
    save_file(tensors, weights)
    if not problem:
        assert len(gate(tmp_path, segformer).heads) == 2
        return
    with pytest.raises(AdapterError, match=problem):
        gate(tmp_path, segformer)


@pytest.mark.parametrize("component", ["text_encoder", "text_encoder_2"])
def test_a_peft_folder_says_which_of_two_like_text_encoders_it_is_for(component: str, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    path = write_pipeline(tmp_path / "sd3", "sd3")
    base = locate_base(str(path))
    encoder = CLIPTextModelWithProjection.from_pretrained(path / component)
    get_peft_model(encoder, LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path / "source")
    with pytest.raises(AdapterMismatchError, match="fits text_encoder and text_encoder_2 of") as refused:
        gate(tmp_path / "source", base)
    assert refused.value.hint is not None
    assert f"--component {component}" in refused.value.hint
    for dialect in DIALECTS:
        convert(tmp_path / "source", tmp_path / dialect, dialect, component=component)
        assert {module.component for module in gate(tmp_path / dialect, base).modules} == {component}


def test_another_base_is_refused_with_what_it_was_made_for(sd: BaseModel, tmp_path: Path) -> None:
    shapes = pair(f"unet.{TO_Q}", ins=16, outs=16) | pair("unet.mid_block.x.attn2.to_k", ins=2048, outs=1280)
    with pytest.raises(AdapterMismatchError) as caught:
        gate(diffusers_folder(tmp_path, shapes), sd)
    assert "(1 of 2 parts fit): the base has no layer 'unet.mid_block.x.attn2.to_k'" in caught.value.message
    assert caught.value.hint == "its shapes look like SDXL: name that base"


@pytest.mark.parametrize("suffix", sorted(limits.PICKLES))
def test_pickles_are_refused_wherever_they_lie(tmp_path: Path, suffix: str) -> None:
    folder = diffusers_folder(tmp_path, pair("unet.a"))
    (folder / "logs").mkdir()
    (folder / f"logs/optimizer{suffix.upper()}").write_bytes(b"\x80\x04.")
    with pytest.raises(AdapterError, match="a pickle, which can run code when loaded"):
        gate(folder, None)


@pytest.mark.parametrize("suffix", sorted(limits.CODE))
def test_code_is_refused(tmp_path: Path, suffix: str) -> None:
    folder = diffusers_folder(tmp_path, pair("unet.a"))
    (folder / f"pipeline{suffix}").touch()
    with pytest.raises(AdapterError, match=f"pipeline{suffix} is code"):
        gate(folder, None)


def test_a_pickle_named_alone_is_refused(tmp_path: Path) -> None:
    (tmp_path / "lora.ckpt").touch()
    with pytest.raises(AdapterError, match="is a pickle"):
        gate(tmp_path / "lora.ckpt", None)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    folder = diffusers_folder(tmp_path, pair("unet.a") | pair("unet.b"))
    path = folder / "pytorch_lora_weights.safetensors"
    tensors = load_file(path)
    tensors["unet.b.lora_B.weight"][-1, -1] = value
    save_file(tensors, path)
    with pytest.raises(
        AdapterError, match=r"1 of 4 tensors hold NaN or infinity, 'unet\.b\.lora_B\.weight' first"
    ):
        gate(folder, None)


def test_a_rank_over_the_limit_is_refused(tmp_path: Path) -> None:
    gate(diffusers_folder(tmp_path / "most", pair("unet.a", rank=limits.MAX_RANK)), None)
    with pytest.raises(AdapterError, match=r"'unet\.a' has rank 1,025 \(limit 1,024\)"):
        gate(diffusers_folder(tmp_path / "more", pair("unet.a", rank=limits.MAX_RANK + 1)), None)


@pytest.mark.parametrize("alpha", [1e6, -1e6])
def test_a_scale_over_the_limit_is_refused(tmp_path: Path, alpha: float) -> None:
    with pytest.raises(AdapterError, match="has scale"):
        gate(diffusers_folder(tmp_path, pair("unet.a"), {"unet.lora_alpha": alpha}), None)


def test_a_file_over_the_limit_is_refused_unread(tmp_path: Path) -> None:
    # Sparse: 4 GiB on paper only.
    shapes = pair("unet.a", rank=1024, ins=1 << 20, outs=6)
    header, position = {}, 0
    for name, shape in shapes.items():
        header[name] = {
            "dtype": "F32",
            "shape": shape,
            "data_offsets": [position, position + 4 * prod(shape)],
        }
        position += 4 * prod(shape)
    path = tmp_path / "pytorch_lora_weights.safetensors"
    path.write_bytes(container(header))
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + position)
    with pytest.raises(AdapterError, match="bytes \\(limit 4,294,967,296\\)"):
        gate(tmp_path, None)


def test_a_changed_byte_in_the_header_never_passes_as_something_else(sd: BaseModel, tmp_path: Path) -> None:
    """Each byte of a small header, flipped: refused, or the very same tensors."""
    folder = diffusers_folder(tmp_path, pair(f"unet.{TO_Q}", ins=16, outs=16))
    path = folder / "pytorch_lora_weights.safetensors"
    sound = path.read_bytes()
    (length,) = struct.unpack("<Q", sound[:8])
    for position in range(0, 8 + length, 3):
        changed = bytearray(sound)
        changed[position] ^= 0x11
        path.write_bytes(changed)
        try:
            layout = gate(folder, sd)
        except AdapterError:
            continue
        assert [m.module for m in layout.modules] == [TO_Q]
    path.write_bytes(sound)
    assert json.dumps(gate(folder, sd).modules[0].a_shape) == "[2, 16]"


def test_what_passes_can_be_opened_by_the_library(sd: BaseModel, tmp_path: Path) -> None:
    layout = gate(diffusers_folder(tmp_path, pair(f"unet.{TO_Q}", ins=16, outs=16)), sd)
    with safe_open(layout.weights_file, "pt") as file:
        for m in layout.modules:
            assert file.get_slice(m.a_key).get_shape() == list(m.a_shape)
            assert file.get_slice(m.b_key).get_shape() == list(m.b_shape)


def test_a_head_for_another_width_is_refused(segformer: BaseModel, tmp_path: Path) -> None:
    own = read_base_shapes(segformer.path, segformer.family)["model"]
    head = {name: shape for name, shape in own.items() if name.startswith("decode_head.")}
    config = {"modules_to_save": ["decode_head"]}
    assert len(gate(peft_folder(tmp_path / "whole", head, config), segformer).heads) == len(head)
    classifier = {name: shape for name, shape in head.items() if "classifier" in name}
    for classes in (256, 257):
        many = head | {name: (classes, *shape[1:]) for name, shape in classifier.items()}
        folder = peft_folder(tmp_path / str(classes), many, config)
        if classes == 256:
            assert len(gate(folder, segformer).heads) == len(head)
            continue
        with pytest.raises(AdapterError, match=r"has 257 classes \(limit 256\)"):
            gate(folder, segformer)
    del head["decode_head.classifier.bias"]
    with pytest.raises(AdapterMismatchError, match=r"lacks 'decode_head\.classifier\.bias'"):
        gate(peft_folder(tmp_path / "part", head, config), segformer)
