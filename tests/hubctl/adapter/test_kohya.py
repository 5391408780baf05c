"""Kohya's names, and what is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hubctl.adapter.contents import read_adapter
from hubctl.adapter.derive import convert, resized
from hubctl.adapter.diff import diff
from hubctl.adapter.header import read_header
from hubctl.adapter.kohya_names import dotted, flat, to_sgm
from hubctl.adapter.layers import Layer
from hubctl.adapter.tensors import Tensor, from_array, scalar, to_array, write_tensors
from hubctl.errors import AdapterError, InputError
from tests.hubctl.adapter.random_lora import layer, write

SGM = {  # from the names of SDXL adapters that sd-scripts trained
    "input_blocks_4_1_transformer_blocks_0_attn1_to_q":
        "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
    "input_blocks_8_1_proj_in": "down_blocks.2.attentions.1.proj_in",
    "input_blocks_1_0_emb_layers_1": "down_blocks.0.resnets.0.time_emb_proj",
    "input_blocks_6_0_op": "down_blocks.1.downsamplers.0.conv",
    "input_blocks_7_0_skip_connection": "down_blocks.2.resnets.0.conv_shortcut",
    "middle_block_0_in_layers_2": "mid_block.resnets.0.conv1",
    "middle_block_1_transformer_blocks_9_ff_net_0_proj":
        "mid_block.attentions.0.transformer_blocks.9.ff.net.0.proj",
    "middle_block_2_out_layers_3": "mid_block.resnets.1.conv2",
    "output_blocks_2_1_transformer_blocks_1_attn2_to_out_0":
        "up_blocks.0.attentions.2.transformer_blocks.1.attn2.to_out.0",
    "output_blocks_5_2_conv": "up_blocks.1.upsamplers.0.conv",
    "output_blocks_8_0_in_layers_2": "up_blocks.2.resnets.2.conv1",
    "input_blocks_0_0": "conv_in", "out_2": "conv_out", "time_embed_2": "time_embedding.linear_2",
    "label_emb_0_0": "add_embedding.linear_1",
}  # fmt: skip
Q = "lora_unet_mid_block_attentions_0_proj_in"


@pytest.mark.parametrize(("sgm", "path"), SGM.items())
def test_stability_s_names(sgm: str, path: str) -> None:
    assert dotted(sgm) == dotted(flat(path)) == path
    assert to_sgm(flat(path)) == sgm


@pytest.mark.parametrize(
    "name", ["blocks_0_cross_attn_k", "layers_3_attention_qkv", "mid_block", "Mid_block_0"]
)
def test_names_of_other_models_are_nobody_s(name: str) -> None:
    assert dotted(name) is None


def kohya(path: Path, **changes: Tensor | None) -> Path:
    """A file of one layer; `changes` replace tensors or (None) take them out."""
    one = layer(rank=2)
    tensors: dict[str, Any] = {
        f"{Q}.lora_down.weight": one.a, f"{Q}.lora_up.weight": one.b, f"{Q}.alpha": scalar(1)
    }  # fmt: skip
    tensors |= {key.replace("__", "."): tensor for key, tensor in changes.items()}
    write_tensors(path, {name: tensor for name, tensor in tensors.items() if tensor is not None}, {})
    return path


def test_alpha_in_any_type_and_without_one(tmp_path: Path) -> None:
    for i, alpha in enumerate((scalar(0.5), from_array(to_array(scalar(0.5)).reshape(1), "BF16"))):
        (found,) = read_adapter(kohya(tmp_path / f"{i}.safetensors", **{f"{Q}.alpha": alpha})).layers
        assert (found.module, found.alpha, found.scale) == ("mid_block.attentions.0.proj_in", 0.5, 0.25)
    (found,) = read_adapter(kohya(tmp_path / "x.safetensors", **{f"{Q}.alpha": None})).layers
    assert (found.alpha, found.scale) == (2, 1)


@pytest.mark.parametrize(
    ("key", "said"),
    [
        (f"{Q}.hada_w1_a", "holds LoHa"),
        (f"{Q}.lokr_w1", "holds LoKr"),
        (f"{Q}.oft_blocks", "holds OFT"),
        (f"{Q}.dora_scale", "holds LyCORIS' DoRA"),
        (f"{Q}.lora_mid.weight", "holds LoCon with Tucker's decomposition"),
        (f"{Q}.diff", "holds a difference of whole weights"),
        ("what.is.this", "a key that no LoRA of kohya's has"),
        ("lora_unet_blocks_0_attn_k.lora_down.weight", "lacks its lora_down or lora_up"),
        ("lora_te_text_model_embeddings_x.alpha", "lacks its lora_down or lora_up"),
    ],
)
def test_other_kinds_are_refused_by_name(key: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=said):
        convert(kohya(tmp_path / "x.safetensors", **{key: layer().a}), tmp_path / "out", "diffusers")
    assert not (tmp_path / "out").exists()


def pair(name: str, **shape: Any) -> dict[str, Tensor]:
    one = layer(rank=2, **shape)
    return {f"{name}.lora_down.weight": one.a, f"{name}.lora_up.weight": one.b}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({f"{Q}.lora_up.weight": layer(rank=3).b}, "which are no LoRA pair"),
        ({f"{Q}.alpha": layer().a}, "not a number"),
        ({f"{Q}.alpha": scalar(float("inf"))}, "is inf, not a sound number"),
        (pair("lora_unet_layers_0_attn_q"), "is no layer of Stable Diffusion, SDXL or Flux"),
        (pair("lora_unet_middle_block_1_proj_in"), "twice, once in the original spelling"),
        (pair("lora_unet_double_blocks_0_img_norm"), "diffusers' Flux has no place for"),
        (pair("lora_unet_double_blocks_0_img_attn_qkv"), "has 12 outputs"),
        (pair("lora_unet_double_blocks_0_img_attn_qkv", out=0, inside=(0,)), "are no LoRA pair"),
        (pair(f"lora_unet_input_blocks_{'9' * 5000}_1_proj_in"), "is no layer of"),
    ],
)
def test_broken_files_are_refused(changes: dict[str, Tensor], said: str, tmp_path: Path) -> None:
    path = kohya(tmp_path / "x.safetensors", **changes)
    with pytest.raises(AdapterError, match=said):
        read_adapter(path)


def test_nan_goes_no_further(tmp_path: Path) -> None:
    nan = Tensor("F32", (2, 10), b"\0\0\xc0\x7f" * 20)
    path = kohya(tmp_path / "x.safetensors", **{f"{Q}.lora_down.weight": nan})
    for run in (
        lambda: diff(path, path),
        lambda: resized(path, tmp_path / "out", 1),
        lambda: convert(path, tmp_path / "out", "kohya"),
        lambda: convert(path, tmp_path / "out", "diffusers"),
    ):
        with pytest.raises(AdapterError, match="NaN or infinity"):
            run()
    assert not (tmp_path / "out").exists()


def dora(one: Layer) -> Layer:
    return replace(one, magnitude=layer(rank=1, inside=(1,)).b.reshaped(12))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (dora, "it is DoRA"),
        (lambda one: replace(one, embedding=True), "it is a table of embeddings"),
        (lambda one: replace(one, component="model"), "it is a layer of a whole transformers model"),
        (lambda one: replace(one, component="transformer"), "no name for"),
        (lambda one: replace(one, module="down_blocks.0.own_layer"), "its path cannot be told"),
        (
            lambda one: replace(one, component="text_encoder", module="encoder.block.0.q"),
            "CLIP text encoders alone",
        ),
        (
            lambda one: replace(one, component="transformer", module="transformer_blocks.0.attn.to_q"),
            "there 'img_attn_qkv' is one layer with one A",
        ),
    ],
)  # fmt: skip
def test_what_kohya_has_no_place_for(change: Callable[[Layer], Layer], said: str, tmp_path: Path) -> None:
    source = write(tmp_path / "source", change(layer()), dialect="peft")
    with pytest.raises(AdapterError, match=said) as refused:
        convert(source, tmp_path / "out", "kohya")
    assert refused.value.hint is not None
    assert "--to" in refused.value.hint
    assert not (tmp_path / "out").exists()


def test_encoders_have_the_prefixes_of_their_pipeline(tmp_path: Path) -> None:
    text = layer("encoder.layers.0.mlp.fc1", component="text_encoder")
    second = replace(text, component="text_encoder_2")
    wide = layer("mid_block.attentions.0.transformer_blocks.0.attn2.to_k", inside=(2048,))
    for layers, prefix in (([text], "lora_te_"), ([text, second], "lora_te1_"), ([text, wide], "lora_te1_")):
        folder = write(tmp_path / str(len(list(tmp_path.iterdir()))), *layers, dialect="kohya")
        header = read_header(next(folder.iterdir()))
        assert f"{prefix}text_model_encoder_layers_0_mlp_fc1.alpha" in header.tensors
        assert header.metadata["ss_network_module"] == "networks.lora"
        assert header.metadata["ss_network_dim"] == header.metadata["ss_network_alpha"] == "4"


def test_stability_s_names_are_sdxl_s_alone(tmp_path: Path) -> None:
    of_sd1 = layer("mid_block.attentions.0.transformer_blocks.0.attn2.to_k", inside=(768,))
    with pytest.raises(InputError, match="its text has 768 features"):
        write(tmp_path / "x", of_sd1, dialect="kohya", spelling="former")
