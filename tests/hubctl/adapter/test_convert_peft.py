"""peft's adapters of transformers models: heads, former names, and what peft loads of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from hubctl.adapter.contents import read_adapter
from hubctl.adapter.derive import convert, resized
from hubctl.adapter.diff import diff
from hubctl.adapter.former_names import former_name
from hubctl.adapter.gate import gate
from hubctl.adapter.header import read_header
from hubctl.adapter.layout import CONFIG_PEFT, WEIGHTS_PEFT
from hubctl.adapter.tensors import read_tensors, write_tensors
from hubctl.errors import AdapterError
from tests.hubctl.adapter.random_lora import layer, write
from tests.serve import tiny

TARGETS = ["q_proj", "v_proj", "sequence_reduction.sequence_reduction", "fc1", "linear_projections.0.proj"]


def segformer() -> Any:
    torch.manual_seed(0)
    config = SegformerConfig(
        num_labels=3, depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 16, 16], num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=8,
    )  # fmt: skip
    return SegformerForSemanticSegmentation(config).eval()


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """LoRA and a head, saved by peft."""
    model = get_peft_model(
        segformer(),
        LoraConfig(
            r=4, lora_alpha=6, target_modules=TARGETS, modules_to_save=["classifier"],
            rank_pattern={"v_proj": 3}, alpha_pattern={"fc1": 1},
        ),
    )  # fmt: skip
    tiny.randomise(model, 1, 0.5)
    torch.nn.init.normal_(model.base_model.model.decode_head.classifier.modules_to_save["default"].weight)
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def logits(folder: Path) -> torch.Tensor:
    model = PeftModel.from_pretrained(segformer(), folder)
    with torch.no_grad():
        return model(torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))).logits


def test_former_names_are_those_that_transformers_saves(tmp_path: Path) -> None:
    model = segformer()
    model.save_pretrained(tmp_path)
    saved = read_header(tmp_path / "model.safetensors").tensors
    names = list(model.state_dict())
    assert {former_name(name, names) for name in names} >= set(saved)


def test_segformer_there_and_back(adapter: Path, tmp_path: Path) -> None:
    convert(adapter, tmp_path / "former", "peft", spelling="former")
    names = read_header(tmp_path / "former" / WEIGHTS_PEFT).tensors
    block = "base_model.model.segformer.encoder.block.0.0."
    assert f"{block}attention.self.query.lora_A.weight" in names
    assert "base_model.model.decode_head.linear_c.0.proj.lora_A.weight" in names
    config = json.loads((tmp_path / "former" / CONFIG_PEFT).read_text())
    assert config["rank_pattern"]["segformer.encoder.block.0.0.attention.self.value"] == 3

    convert(tmp_path / "former", tmp_path / "current", "peft")
    assert diff(adapter, tmp_path / "former").change == diff(adapter, tmp_path / "current").change == 0
    torch.testing.assert_close(logits(tmp_path / "current"), logits(adapter), rtol=0, atol=0)
    assert (logits(adapter) - segformer()(torch.zeros(1, 3, 64, 64)).logits).abs().max() > 0.01


def test_a_resized_adapter_keeps_its_head_and_loads_in_peft(adapter: Path, tmp_path: Path) -> None:
    resized(adapter, tmp_path / "same", 4)
    torch.testing.assert_close(logits(tmp_path / "same"), logits(adapter), rtol=0, atol=0)
    assert 0 < resized(adapter, tmp_path / "cut", 2).total.relative < 1
    layout = gate(tmp_path / "cut", None)
    assert {module.rank for module in layout.modules} == {2}
    assert [head.name for head in layout.heads] == [
        "decode_head.classifier.bias",
        "decode_head.classifier.weight",
    ]
    assert not torch.equal(logits(tmp_path / "cut"), logits(adapter))


@pytest.mark.parametrize("dialect", ["diffusers", "kohya"])
def test_a_head_has_no_place_elsewhere(adapter: Path, tmp_path: Path, dialect: Any) -> None:
    with pytest.raises(AdapterError, match=r"no place for 'decode_head\.classifier\.bias'") as refused:
        convert(adapter, tmp_path / "out", dialect)
    assert "--to peft" in str(refused.value.hint)
    assert not (tmp_path / "out").exists()


def test_a_peft_adapter_of_a_unet_says_so_or_is_told(tmp_path: Path) -> None:
    class Model(torch.nn.Module):
        config = None

        def __init__(self) -> None:
            super().__init__()
            self.conv_in = torch.nn.Conv2d(4, 8, 3)

    model = get_peft_model(Model(), LoraConfig(r=2, lora_alpha=3, target_modules=["conv_in"]))
    tiny.randomise(model, 1, 0.5)
    model.save_pretrained(tmp_path / "peft")
    with pytest.raises(AdapterError, match="no place for 'conv_in'") as refused:
        convert(tmp_path / "peft", tmp_path / "out", "diffusers")
    assert "--component unet" in str(refused.value.hint)
    convert(tmp_path / "peft", tmp_path / "out", "diffusers", component="unet")
    (found,) = gate(tmp_path / "out", None).modules
    assert (found.component, found.module, found.alpha) == ("unet", "conv_in", 3)
    convert(tmp_path / "out", tmp_path / "again", "peft")
    (found,) = gate(tmp_path / "again", None).modules
    assert found.component == "unet"


def test_clip_as_transformers_4_had_it(tmp_path: Path) -> None:
    one = layer("encoder.layers.0.self_attn.q_proj", component="text_encoder", alpha=3)
    former = write(tmp_path / "former", one, dialect="peft", spelling="former")
    (key, *_) = read_header(former / WEIGHTS_PEFT).tensors
    assert key.startswith("base_model.model.text_model.encoder.layers.0.self_attn.q_proj")
    assert read_adapter(former).layers == (one,)
    tensors = read_tensors(former / WEIGHTS_PEFT, read_header(former / WEIGHTS_PEFT))
    write_tensors(former / WEIGHTS_PEFT, tensors, {})  # as peft leaves it, without a word on the component
    tiny.rewrite_config(former, CONFIG_PEFT, auto_mapping=None)
    assert read_adapter(former).components == ("model",)
    assert read_adapter(former, "text_encoder").layers == (one,)
