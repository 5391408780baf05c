"""Every dialect: files of diffusers' and peft's own savers, and the names of the others' public formats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hubctl.adapter.dialect import DIALECTS, Recognised, recognise
from hubctl.adapter.header import parse_header, read_header
from hubctl.adapter.layout import CONFIG_PEFT, read_config
from tests.hubctl.adapter.raw import Shapes, weights

SD_Q = "down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
XL_Q = "input_blocks_4_1_transformer_blocks_0_attn1_to_q"


def of(shapes: Shapes) -> Recognised:
    data = weights(shapes)
    length = int.from_bytes(data[:8], "little")
    return recognise(parse_header(data[8 : 8 + length], size_bytes=len(data), path=Path("x.safetensors")))


def kohya(name: str, ins: int = 320, outs: int = 320, rank: int = 4) -> dict[str, tuple[int, ...]]:
    return {
        f"{name}.lora_down.weight": (rank, ins),
        f"{name}.lora_up.weight": (outs, rank),
        f"{name}.alpha": (),
    }


def halves(name: str, a: str, b: str, ins: int = 3072, outs: int = 3072) -> dict[str, tuple[int, ...]]:
    return {f"{name}.{a}": (16, ins), f"{name}.{b}": (outs, 16)}


NEW = ("lora_A.weight", "lora_B.weight")
OLD = ("lora.down.weight", "lora.up.weight")

TABLES: dict[str, tuple[str, Shapes, set[tuple[str, str]]]] = {
    "kohya for SD 1": (
        "kohya",
        kohya(f"lora_unet_{SD_Q}") | kohya("lora_te_text_model_encoder_layers_0_mlp_fc1", 768, 3072),
        {("unet", SD_Q), ("text_encoder", "text_model_encoder_layers_0_mlp_fc1")},
    ),
    "kohya for SDXL": (
        "kohya",
        kohya(f"lora_unet_{XL_Q}", 640, 640)
        | kohya("lora_te1_text_model_encoder_layers_0_self_attn_q_proj", 768, 768)
        | kohya("lora_te2_text_model_encoder_layers_0_self_attn_q_proj", 1280, 1280),
        {
            ("unet", XL_Q),
            ("text_encoder", "text_model_encoder_layers_0_self_attn_q_proj"),
            ("text_encoder_2", "text_model_encoder_layers_0_self_attn_q_proj"),
        },
    ),
    "kohya for Flux": (
        "kohya",
        kohya("lora_unet_double_blocks_0_img_attn_qkv", 3072, 9216),
        {("transformer", "double_blocks_0_img_attn_qkv")},
    ),
    "kohya for SD3": (
        "kohya",
        kohya("lora_unet_joint_blocks_0_x_block_attn_qkv", 1536, 4608)
        | kohya("lora_te3_encoder_block_0_layer_0_SelfAttention_q", 4096, 4096),
        {
            ("transformer", "joint_blocks_0_x_block_attn_qkv"),
            ("text_encoder_3", "encoder_block_0_layer_0_SelfAttention_q"),
        },
    ),
    "XLabs": (
        "xlabs",
        halves("double_blocks.0.processor.qkv_lora1", "down.weight", "up.weight")
        | halves("double_blocks.0.processor.proj_lora2", "down.weight", "up.weight")
        | halves("single_blocks.0.processor.qkv_lora", "down.weight", "up.weight"),
        {
            ("transformer", "double_blocks.0.qkv_lora1"),
            ("transformer", "double_blocks.0.proj_lora2"),
            ("transformer", "single_blocks.0.qkv"),
        },
    ),
    "XLabs for ComfyUI": (
        "xlabs",
        halves("diffusion_model.double_blocks.0.processor.qkv_lora1", "down.weight", "up.weight"),
        {("transformer", "double_blocks.0.qkv_lora1")},
    ),
    "BFL": (
        "bfl",
        halves("double_blocks.0.img_attn.qkv", *NEW) | halves("single_blocks.0.linear1", *NEW),
        {("transformer", "double_blocks.0.img_attn.qkv"), ("transformer", "single_blocks.0.linear1")},
    ),
    "BFL for ComfyUI": (
        "bfl",
        halves("diffusion_model.double_blocks.0.img_attn.qkv", *NEW),
        {("transformer", "double_blocks.0.img_attn.qkv")},
    ),
    "BFL control": (
        "bfl-control",
        halves("double_blocks.0.img_attn.qkv", *NEW)
        | {"double_blocks.0.img_attn.norm.query_norm.scale": (128,)},
        {("transformer", "double_blocks.0.img_attn.qkv")},
    ),
    "fal": (
        "fal",
        halves("base_model.model.double_blocks.0.img_attn.qkv", *NEW),
        {("transformer", "double_blocks.0.img_attn.qkv")},
    ),
    "ComfyUI for Wan": (
        "comfyui",
        halves("diffusion_model.blocks.0.self_attn.q", *NEW),
        {("transformer", "blocks.0.self_attn.q")},
    ),
    "diffusers before 0.18": (
        "diffusers",
        halves("unet.mid_block.attentions.0.attn1.to_q", *OLD),
        {("unet", "mid_block.attentions.0.attn1.to_q")},
    ),
    "diffusers' processors": (
        "diffusers-processors",
        halves("unet.mid_block.attn1.processor.to_q_lora", "down.weight", "up.weight")
        | halves("mid_block.attn1.processor.to_k_lora", "down.weight", "up.weight"),
        {("unet", "mid_block.attn1.to_q"), ("unet", "mid_block.attn1.to_k")},
    ),
    "PEFT without its file": (
        "peft",
        halves("base_model.model.encoder.layers.0.q_proj", *NEW),
        {("model", "encoder.layers.0.q_proj")},
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_dialect_by_its_names(name: str) -> None:
    dialect, shapes, layers = TABLES[name]
    found = of(shapes)
    assert (found.dialect, set(found.kinds)) == (dialect, {"LoRA"})
    assert {(layer.component, layer.module) for layer in found.layers} == layers
    assert all(layer.missing == () and layer.rank for layer in found.layers)
    assert dialect in DIALECTS


L = f"lora_unet_{SD_Q}"
KINDS: dict[str, tuple[str, Shapes, int | None, tuple[int | None, int | None]]] = {
    "LoHa": (
        "LoHa",
        {
            f"{L}.hada_w1_a": (640, 8), f"{L}.hada_w1_b": (8, 320),
            f"{L}.hada_w2_a": (640, 8), f"{L}.hada_w2_b": (8, 320), f"{L}.alpha": (),
        },
        8, (320, 640),
    ),
    "LoHa of a convolution": (
        "LoHa",
        {
            f"{L}.hada_t1": (8, 8, 3, 3), f"{L}.hada_w1_a": (8, 640), f"{L}.hada_w1_b": (8, 320),
            f"{L}.hada_t2": (8, 8, 3, 3), f"{L}.hada_w2_a": (8, 640), f"{L}.hada_w2_b": (8, 320),
        },
        8, (320, 640),
    ),
    "LoKr": (
        "LoKr",
        {f"{L}.lokr_w1": (16, 8), f"{L}.lokr_w2_a": (40, 4), f"{L}.lokr_w2_b": (4, 40), f"{L}.alpha": ()},
        4, (320, 640),
    ),
    "LoKr whole": ("LoKr", {f"{L}.lokr_w1": (16, 8), f"{L}.lokr_w2": (40, 40)}, None, (320, 640)),
    "OFT": ("OFT", {f"{L}.oft_blocks": (4, 80, 80), f"{L}.alpha": ()}, None, (None, None)),
    "BOFT": ("BOFT", {f"{L}.oft_blocks": (3, 4, 80, 80), f"{L}.rescale": (320, 1)}, None, (None, None)),
    "IA3": ("IA3", {f"{L}.weight": (1, 320), f"{L}.on_input": ()}, None, (None, None)),
    "GLoRA": (
        "GLoRA",
        {f"{L}.{part}.weight": (4, 320) if part[1] == "1" else (320, 4) for part in ("a1", "a2", "b1", "b2")},
        None, (None, None),
    ),
    "full": ("full difference", {f"{L}.diff": (640, 320), f"{L}.diff_b": (640,)}, None, (320, 640)),
    "norms": ("norms", {f"{L}.w_norm": (320,), f"{L}.b_norm": (320,)}, None, (None, None)),
    "DoRA of LoHa": (
        "LoHa",
        {f"{L}.hada_w{n}_{half}": (8, 320) if half == "b" else (320, 8) for n in (1, 2) for half in "ab"}
        | {f"{L}.dora_scale": (1, 320)},
        8, (320, 320),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_of_lycoris_by_its_names(name: str) -> None:
    kind, shapes, rank, (ins, outs) = KINDS[name]
    found = of(shapes)
    assert (found.dialect, found.unknown) == ("lycoris", ())
    (layer,) = found.layers
    assert (layer.kind, layer.rank, layer.missing) == (kind, rank, ())
    assert layer.place == ("unet", SD_Q, ins, outs)


def test_a_locon_is_kohya_s_with_convolutions() -> None:
    found = of(
        {f"{L}.lora_down.weight": (4, 320, 1, 1), f"{L}.lora_mid.weight": (4, 4, 3, 3),
         f"{L}.lora_up.weight": (640, 4, 1, 1), f"{L}.alpha": ()}
    )  # fmt: skip
    (layer,) = found.layers
    assert (found.dialect, layer.kind, layer.conv, layer.rank) == ("kohya", "LoRA", True, 4)


@pytest.mark.parametrize(
    ("shapes", "missing"),
    [
        ({f"{L}.lora_down.weight": (4, 8)}, ("B",)),
        ({f"{L}.lora_up.weight": (8, 4), f"{L}.alpha": ()}, ("A",)),
        ({f"{L}.alpha": ()}, ("A", "B")),
        ({f"{L}.hada_w1_a": (8, 4), f"{L}.hada_w1_b": (4, 8), f"{L}.hada_w2_b": (4, 8)}, ("hada_w2_a",)),
        ({f"{L}.lokr_w1": (2, 2), f"{L}.lokr_w2_a": (4, 2)}, ("lokr_w2_b",)),
    ],
)
def test_what_a_layer_lacks(shapes: Shapes, missing: tuple[str, ...]) -> None:
    (layer,) = of(shapes).layers
    assert layer.missing == missing


def test_tensors_of_no_adapter_are_told_apart() -> None:
    found = of({"model.diffusion_model.input_blocks.0.0.weight": (320, 4, 3, 3)})
    assert (found.dialect, found.layers) == ("unknown", ())
    assert found.unknown == ("model.diffusion_model.input_blocks.0.0.weight",)


def test_one_tensor_under_two_names_is_told() -> None:
    found = of(halves("unet.mid.to_q", *NEW) | halves("unet.mid.to_q", *OLD))
    assert (len(found.layers), set(found.unknown)) == (1, {f"unet.mid.to_q.{end}" for end in OLD})


def test_diffusers_own_files(tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    from tests.train.tiny import diffusion_base

    pipe = StableDiffusionPipeline.from_pretrained(diffusion_base(tmp_path / "sd"))
    for part in (pipe.unet, pipe.text_encoder):
        part.add_adapter(LoraConfig(r=2, target_modules=["to_q", "q_proj"]))
    layers = {name: get_peft_model_state_dict(getattr(pipe, name)) for name in ("unet", "text_encoder")}
    for name, folder in (("metadata", tmp_path / "new"), ("plain", tmp_path / "plain")):
        StableDiffusionPipeline.save_lora_weights(
            folder,
            unet_lora_layers=layers["unet"],
            text_encoder_lora_layers=layers["text_encoder"],
            **({"unet_lora_adapter_metadata": {"r": 2}} if name == "metadata" else {}),
        )
        found = recognise(read_header(folder / "pytorch_lora_weights.safetensors"))
        assert (found.dialect, dict(found.kinds)) == ("diffusers", {"LoRA": len(found.layers)})
        assert {layer.component for layer in found.layers} == {"unet", "text_encoder"}
        assert all(layer.rank == 2 and not layer.missing for layer in found.layers)


PEFT: dict[str, dict[str, Any]] = {
    "LoRA": {"r": 4},
    "AdaLoRA": {"init_r": 4, "total_step": 10},
    "LoHa": {"r": 4},
    "LoKr": {"r": 4},
    "OFT": {"r": 0, "oft_block_size": 4},
    "BOFT": {"boft_block_size": 4},
    "IA3": {"feedforward_modules": []},
    "VeRA": {"r": 4},
    "HRA": {"r": 4},
}
CONFIGS = {
    "LoRA": "LoraConfig", "AdaLoRA": "AdaLoraConfig", "LoHa": "LoHaConfig", "LoKr": "LoKrConfig",
    "OFT": "OFTConfig", "BOFT": "BOFTConfig", "IA3": "IA3Config", "VeRA": "VeraConfig", "HRA": "HRAConfig",
}  # fmt: skip


@pytest.mark.parametrize("kind", PEFT)
@pytest.mark.filterwarnings("ignore")
def test_peft_s_own_files(kind: str, tmp_path: Path) -> None:
    import peft
    import torch

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = torch.nn.Linear(16, 16)
            self.second = torch.nn.Linear(16, 16)
            self.head = torch.nn.Linear(16, 3)

    config = getattr(peft, CONFIGS[kind])(
        target_modules=["first", "second"], modules_to_save=["head"], **PEFT[kind]
    )
    peft.get_peft_model(Net(), config).save_pretrained(tmp_path)
    settings = read_config(tmp_path / CONFIG_PEFT)
    found = recognise(read_header(tmp_path / "adapter_model.safetensors"), settings)
    assert found.dialect == "peft"
    assert found.kinds[kind] >= 2
    assert found.unknown == ()
    assert {"first", "second"} <= {layer.module for layer in found.layers}
    assert set(found.whole) == {"base_model.model.head.weight", "base_model.model.head.bias"}
    assert not any(layer.missing for layer in found.layers if layer.module in ("first", "second"))
    if kind in ("LoRA", "LoHa"):
        assert {layer.rank for layer in found.layers} == {4}
