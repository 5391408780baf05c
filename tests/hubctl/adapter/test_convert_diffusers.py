"""Adapters of pipelines in three dialects: what diffusers and peft load from each is the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.lora_conversion_utils import _convert_kohya_flux_lora_to_diffusers
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file

from hubctl.adapter.contents import Dialect
from hubctl.adapter.derive import convert
from hubctl.adapter.diff import diff
from hubctl.adapter.gate import gate
from hubctl.adapter.header import read_header
from hubctl.adapter.layers import Layer
from hubctl.adapter.layout import WEIGHTS_DIFFUSERS, read_layout
from hubctl.adapter.save import Spelling
from hubctl.adapter.tensors import Tensor, scalar, write_tensors
from hubctl.base_models import locate_base
from hubctl.errors import AdapterError
from serve.engine.host_rows import read_rows
from serve.engine.row_pool import RowPool
from tests.hubctl.adapter.random_lora import dense, layer, write
from tests.serve import tiny
from tests.serve.tiny_pipelines import write_pipeline

# With out_proj: without it diffusers 0.42 does not know a text encoder in kohya's form.
TEXT = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
LAYERS = (*tiny.ATTENTION, *tiny.CONVOLUTIONS)
PARTS = ("unet", "transformer", "text_encoder", "text_encoder_2")


def effect(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """ΔW of every layer that has LoRA, as peft computes it."""
    return {
        name: inner.get_delta_weight(inner.active_adapters[0]).detach()
        for name, inner in module.named_modules()
        if isinstance(inner, BaseTunerLayer)
    }


def loaded(base: Path, adapter: Path, unet: Any = None) -> dict[str, torch.Tensor]:
    """ΔW of every layer of the pipeline after diffusers has loaded the adapter."""
    pipeline = tiny.load_pipeline(base)
    if unet is not None:
        pipeline.register_modules(unet=unet)
    weights = next(adapter.glob("*.safetensors"))
    pipeline.load_lora_weights(str(adapter), weight_name=weights.name)
    return {
        f"{part}.{name}": delta
        for part in PARTS
        if isinstance(module := getattr(pipeline, part, None), torch.nn.Module)
        for name, delta in effect(module).items()
    }


def assert_same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    assert one.keys() == two.keys()
    for name in one:
        assert one[name].any(), name
        torch.testing.assert_close(one[name], two[name], msg=name)


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pipeline(tmp_path_factory.mktemp("base") / request.param, request.param)


@pytest.fixture(params=["", "text_model."], ids=["clip-as-now", "clip-as-before"])
def adapter(base: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Saved by diffusers: attention, convolutions and text encoders, an alpha that is not the rank."""
    if base.name == "sdxl" and request.param:
        pytest.skip("the second text encoder has that level in every version")
    return tiny.write_lora(
        tmp_path / "adapter", base, seed=1, alpha=2, targets=LAYERS, text_targets=TEXT,
        text_prefix=request.param,
    )  # fmt: skip


def test_diffusers_loads_the_same_from_every_dialect(base: Path, adapter: Path, tmp_path: Path) -> None:
    expected = loaded(base, adapter)
    last = adapter
    for step, dialect in enumerate[Dialect](("kohya", "diffusers", "peft", "kohya", "diffusers")):
        target = tmp_path / f"{step}-{dialect}"
        convert(last, target, dialect)
        if dialect != "peft":
            assert_same(loaded(base, target), expected)
        assert diff(adapter, target).change == 0
        last = target


def test_peft_computes_what_diffusers_computes(base: Path, adapter: Path, tmp_path: Path) -> None:
    convert(adapter, tmp_path / "peft", "peft")
    expected = loaded(base, adapter)
    pipeline = tiny.load_pipeline(base)
    found: dict[str, torch.Tensor] = {}
    for folder in sorted((tmp_path / "peft").iterdir()):
        model = PeftModel.from_pretrained(getattr(pipeline, folder.name), folder)
        found |= {f"{folder.name}.{name}": delta for name, delta in effect(model.base_model.model).items()}
    assert_same(found, expected)


def test_words_come_along_to_every_dialect_and_back(tmp_path: Path) -> None:
    base = write_pipeline(tmp_path / "base", "sd1")
    source = tiny.write_lora(tmp_path / "source", base, seed=1)
    save_file({"clip_l": torch.randn(2, 16)}, source / "source_emb.safetensors")
    words = (source / "source_emb.safetensors").read_bytes()
    dialects: tuple[Dialect, ...] = ("kohya", "peft", "diffusers")
    for dialect in dialects:
        convert(source, tmp_path / dialect, dialect)
        convert(tmp_path / dialect, tmp_path / f"{dialect}-back", "diffusers")
        layout = read_layout(tmp_path / f"{dialect}-back")
        assert layout.tokens is not None
        assert layout.tokens.file.read_bytes() == words


def test_a_peft_folder_of_a_unet_is_served_as_the_other(tmp_path: Path) -> None:
    base = write_pipeline(tmp_path / "base", "sd1")
    source = tiny.write_lora(tmp_path / "source", base, seed=1, alpha=2)
    convert(source, tmp_path / "peft", "peft")
    pool = RowPool({"unet": tiny.load_pipeline(base).unet}, 8)
    one, two = (read_rows(read_layout(folder), pool, 1 << 20) for folder in (source, tmp_path / "peft"))
    assert [slot.name for slot in one.slots] == [slot.name for slot in two.slots]
    assert torch.equal(one.a, two.a)
    assert torch.equal(one.b, two.b)


def test_sdxl_in_stability_s_spelling(tmp_path: Path) -> None:
    base = write_pipeline(tmp_path / "base", "sdxl")

    def unet() -> UNet2DConditionModel:
        """Blocks as in SDXL: two resnets each, attention in all but the first."""
        return UNet2DConditionModel(
            block_out_channels=(8, 16, 16), layers_per_block=2, norm_num_groups=4, attention_head_dim=2,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 1, 2), cross_attention_dim=56, use_linear_projection=True,
            addition_embed_type="text_time", addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=72,
        )  # fmt: skip

    layers = [
        _for(name, module, alpha=1.5)
        for name, module in unet().named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)
    ]
    source = write(tmp_path / "source", *layers)
    expected = loaded(base, source, unet())
    assert len(expected) == len(layers)
    spellings: tuple[Spelling, ...] = ("former", "current")
    for spelling in spellings:
        target = tmp_path / spelling
        convert(source, target, "kohya", spelling=spelling)
        names = read_header(target / f"{spelling}.safetensors").tensors
        assert any("input_blocks_4_1_transformer_blocks" in name for name in names) == (spelling == "former")
        wanted = expected
        if spelling == "current":  # diffusers reads the label embedding in the other spelling alone
            wanted = {name: delta for name, delta in expected.items() if "add_embedding" not in name}
        assert_same(loaded(base, target, unet()), wanted)
        assert diff(source, target).change == 0


def test_every_layer_keeps_its_own_alpha(tmp_path: Path) -> None:
    base = write_pipeline(tmp_path / "base", "sd1")
    expected = loaded(base, tiny.write_lora(tmp_path / "whole", base, seed=1, targets=LAYERS))
    layers = [
        layer(
            name.removeprefix("unet."), rank=2 + i % 3, alpha=1 + i % 5 + 0.25, out=len(delta),
            inside=tuple(delta.shape[1:]), seed=i,
        )
        for i, (name, delta) in enumerate(sorted(expected.items()))
    ]  # fmt: skip
    kohya = write(tmp_path / "kohya", *layers, dialect="kohya")
    convert(kohya, tmp_path / "diffusers", "diffusers")
    convert(kohya, tmp_path / "peft", "peft")
    # Written out, since diffusers 0.42 gives all layers of kohya's file the commonest alpha.
    written = {one.where: torch.tensor(dense(one), dtype=torch.float32) for one in layers}
    for found in (
        loaded(base, tmp_path / "diffusers"),
        {f"unet.{name}": delta for name, delta in effect(_peft(base, tmp_path / "peft")).items()},
    ):
        assert_same({name: delta.flatten(1) for name, delta in found.items()}, written)


@pytest.mark.parametrize("settings", [{"use_rslora": True}, {"use_dora": True}], ids=str)
def test_rslora_and_dora_survive_in_diffusers_and_peft(settings: dict[str, Any], tmp_path: Path) -> None:
    base = write_pipeline(tmp_path / "base", "sd1")
    source = tiny.write_lora(tmp_path / "source", base, seed=1, alpha=3, **settings)
    convert(source, tmp_path / "peft", "peft")
    convert(tmp_path / "peft", tmp_path / "back", "diffusers")
    assert_same(loaded(base, tmp_path / "back"), loaded(base, source))
    one, other = tiny.load_pipeline(base), _peft(base, tmp_path / "peft")
    one.load_lora_weights(str(source))
    noise, time, text = torch.randn(1, 4, 16, 16), torch.tensor([5]), torch.randn(1, 7, 32)
    with torch.no_grad():
        expected = one.unet(noise, time, text).sample
        torch.testing.assert_close(other(noise, time, text).sample, expected)


def test_flux_layers_that_kohya_fuses(tmp_path: Path) -> None:
    width = 3072  # diffusers' own conversion knows no other
    sizes = {
        "double_blocks_0_img_attn_qkv": (3, 1), "double_blocks_0_txt_attn_qkv": (3, 1),
        "double_blocks_0_img_attn_proj": (1, 1), "double_blocks_0_txt_attn_proj": (1, 1),
        "double_blocks_0_img_mlp_0": (4, 1), "double_blocks_0_img_mlp_2": (1, 4),
        "double_blocks_0_txt_mlp_0": (4, 1), "double_blocks_0_txt_mlp_2": (1, 4),
        "double_blocks_0_img_mod_lin": (6, 1), "double_blocks_0_txt_mod_lin": (6, 1),
        "single_blocks_0_linear1": (7, 1), "single_blocks_0_linear2": (1, 5),
        "single_blocks_0_modulation_lin": (3, 1),
    }  # fmt: skip
    tensors = {}
    for i, (name, (out, inside)) in enumerate(sizes.items()):
        one = layer(rank=2, out=out * width, inside=(inside * width,), seed=i)
        tensors[f"lora_unet_{name}.lora_down.weight"] = one.a
        tensors[f"lora_unet_{name}.lora_up.weight"] = one.b
        tensors[f"lora_unet_{name}.alpha"] = scalar(1)
    trained = {"ss_network_module": "networks.lora", "ss_network_dim": "2", "ss_network_alpha": "1"}
    write_tensors(tmp_path / "kohya.safetensors", tensors, trained | {"ss_training_comment": "kept"})

    convert(tmp_path / "kohya.safetensors", tmp_path / "diffusers", "diffusers")
    theirs = _convert_kohya_flux_lora_to_diffusers(load_file(tmp_path / "kohya.safetensors"))
    ours = load_file(tmp_path / "diffusers" / WEIGHTS_DIFFUSERS)
    assert ours.keys() == theirs.keys()
    for name in ours:
        # They multiply A by alpha / rank, here the settings say it.
        torch.testing.assert_close(ours[name] * (0.5 if "lora_A" in name else 1), theirs[name])

    convert(tmp_path / "diffusers", tmp_path / "back" / "kohya", "kohya")
    back = (tmp_path / "back" / "kohya" / "kohya.safetensors").read_bytes()
    assert back == (tmp_path / "kohya.safetensors").read_bytes()


def halves(name: str, out: int, *, kohya: bool, alpha: float | None = 3) -> dict[str, Tensor]:
    """One layer of rank 2 from 32 features, as ComfyUI and its like write it."""
    one = layer(rank=2, out=out, inside=(32,), seed=len(name))
    a, b = ("lora_down", "lora_up") if kohya else ("lora_A", "lora_B")
    stated = {f"{name}.alpha": scalar(alpha)} if alpha else {}
    return {f"{name}.{a}.weight": one.a, f"{name}.{b}.weight": one.b} | stated


COMFYUI = {
    "flux-alphas": (
        "flux",
        halves("transformer.single_transformer_blocks.0.attn.to_q", 32, kohya=False, alpha=1)
        | halves("transformer.transformer_blocks.0.attn.to_k", 32, kohya=False)
        | halves("text_encoder.text_model.encoder.layers.0.self_attn.q_proj", 32, kohya=False),
    ),
    "flux-without": (
        "flux",
        halves("transformer.transformer_blocks.0.attn.to_k", 32, kohya=True, alpha=None),
    ),
    "flux-original": ("flux", halves("diffusion_model.double_blocks.0.img_attn.qkv", 96, kohya=True)),
    "z-image": (
        "z-image",
        halves("diffusion_model.layers.0.attention.to_q", 32, kohya=False)
        | halves("diffusion_model.noise_refiner.0.feed_forward.w1", 85, kohya=False, alpha=None),
    ),
    "z-image-original": (
        "z-image",
        halves("diffusion_model.layers.0.attention.out", 32, kohya=True)
        | halves("diffusion_model.layers.0.adaLN_modulation.0", 128, kohya=True),
    ),
    "qwen-image": ("qwen-image", halves("diffusion_model.transformer_blocks.0.attn.to_q", 32, kohya=False)),
}


@pytest.mark.parametrize(("kind", "tensors"), COMFYUI.values(), ids=COMFYUI)
def test_comfyui_s_form_is_converted_as_diffusers_loads_it(
    kind: str, tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    base = write_pipeline(tmp_path / "base", kind)
    (tmp_path / "source").mkdir()
    write_tensors(tmp_path / "source" / WEIGHTS_DIFFUSERS, tensors, {})
    with pytest.raises(AdapterError, match="in ComfyUI form") as refused:
        read_layout(tmp_path / "source")
    assert refused.value.hint == "hubctl convert FILE --to diffusers -o DIR"
    convert(tmp_path / "source", tmp_path / "target", "diffusers")
    assert_same(loaded(base, tmp_path / "target"), loaded(base, tmp_path / "source"))
    gate(tmp_path / "target", locate_base(str(base)))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("lora_unet_joint_blocks_0_x_block_attn_qkv", "no layer of Stable Diffusion, SDXL or Flux"),
        ("diffusion_model.input_blocks.4.1.proj_in", "is a layer of a UNet"),
    ],
)
def test_who_is_sent_to_convert_is_not_refused_there(name: str, said: str, tmp_path: Path) -> None:
    write_tensors(tmp_path / "x.safetensors", halves(name, 96, kohya=True), {})
    with pytest.raises(AdapterError, match=said):
        convert(tmp_path / "x.safetensors", tmp_path / "target", "diffusers")
    with pytest.raises(AdapterError, match=said) as refused:
        read_layout(tmp_path)
    assert "convert" not in str(refused.value.hint)


def _peft(base: Path, folder: Path) -> torch.nn.Module:
    model: torch.nn.Module = PeftModel.from_pretrained(tiny.load_pipeline(base).unet, folder).base_model.model
    return model


def _for(name: str, module: torch.nn.Linear | torch.nn.Conv2d, **more: Any) -> Layer:
    weight = module.weight
    return layer(name, rank=2, out=len(weight), inside=tuple(weight.shape[1:]), seed=len(name), **more)
