"""Families told from the names and widths of diffusers' own models, in diffusers' and in kohya's spelling."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hubctl.adapter.fingerprint import TITLES, Place, family_of, stated_family
from tests.hubctl.adapter.published import MODELS, places

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_qkv_mlp_proj")


@pytest.mark.parametrize("spell", [str, lambda path: path.replace(".", "_")], ids=["dotted", "flat"])
@pytest.mark.parametrize("family", MODELS)
def test_every_layer_together_tells_the_family(family: str, spell: Callable[[str], str]) -> None:
    spelled = [place._replace(module=spell(place.module)) for place in places(family)]
    assert family_of(spelled) == family


@pytest.mark.parametrize("family", [name for name in MODELS if name != "pixart"])
def test_attention_alone_tells_it_too(family: str) -> None:
    assert family_of(place for place in places(family) if place.module.endswith(ATTENTION)) == family


def test_self_attention_alone_tells_sdxl_by_its_depth() -> None:
    assert family_of(p for p in places("sdxl") if "attn1" in p.module) == "sdxl"
    assert family_of(p for p in places("sd1") if "attn1" in p.module) is None


@pytest.mark.parametrize(
    ("component", "module", "ins", "outs", "family"),
    [
        ("unet", "input_blocks_4_1_transformer_blocks_0_attn1_to_q", 640, 640, "sdxl"),
        ("unet", "output_blocks_0_1_transformer_blocks_3_attn2_to_k", 2048, 1280, "sdxl"),
        ("transformer", "double_blocks_0_img_attn_qkv", 3072, 9216, "flux"),
        ("transformer", "double_blocks.3.qkv_lora1", 3072, 9216, "flux"),
        ("transformer", "single_blocks.37.linear1", 3072, 21504, "flux"),
        ("transformer", "single_blocks.0.linear1", 3072, 27648, "flux2-klein"),
        ("transformer", "single_blocks.0.linear1", 6144, 55296, "flux2"),
        ("transformer", "double_blocks_0_img_mlp_fc1", 3072, 12288, "hunyuan-video"),
        ("transformer", "joint_blocks.0.x_block.attn.qkv", 1536, 4608, "sd3"),
        ("transformer", "blocks.0.self_attn.q", 5120, 5120, "wan"),
        ("transformer", "layers.0.attention.qkv", 3840, 11520, "z-image"),
        ("transformer", "attn2.to_k", 2048, 640, None),
        ("text_encoder", "layers.0.self_attn.q_proj", 1024, 1024, "sd2"),
        ("text_encoder", "layers.0.self_attn.q_proj", 768, 768, None),
        ("unet", "down_blocks.0.resnets.0.conv1", 320, 320, None),
        ("model", "segformer.stages.0.blocks.0.attention.q_proj", 768, 768, None),
    ],
)
def test_one_layer(component: str, module: str, ins: int, outs: int, family: str | None) -> None:
    assert family_of([Place(component, module, ins, outs)]) == family


@pytest.mark.parametrize(
    ("base", "family"),
    [
        ("runwayml/stable-diffusion-v1-5", "sd1"),
        ("stable-diffusion-v1/lora", "sd1"),
        ("sd_v1", "sd1"),
        ("SD 1.5", "sd1"),
        ("stabilityai/stable-diffusion-2-1", "sd2"),
        ("stable-diffusion-v2-768-v/lora", "sd2"),
        ("sd_v2_v", "sd2"),
        ("stabilityai/stable-diffusion-xl-base-1.0", "sdxl"),
        ("sdxl_base_v1-0", "sdxl"),
        ("stable-diffusion-xl-v1-base/lora", "sdxl"),
        ("AstraliteHeart/pony-diffusion-v6", "sdxl"),
        ("stabilityai/stable-diffusion-3.5-medium", "sd3"),
        ("sd3_m", "sd3"),
        ("black-forest-labs/FLUX.1-dev", "flux"),
        ("flux-1-dev/lora", "flux"),
        ("flux1", "flux"),
        ("black-forest-labs/FLUX.2-dev", "flux2"),
        ("black-forest-labs/FLUX.2-klein-4B", "flux2-klein"),
        ("lodestones/Chroma1-HD", None),
        ("Qwen/Qwen-Image", "qwen-image"),
        ("Tongyi-MAI/Z-Image-Turbo", "z-image"),
        ("hubctl/emoji-64", None),
        ("", None),
    ],
)
def test_what_a_base_is_called(base: str, family: str | None) -> None:
    assert stated_family(base) == family
    assert family is None or family in TITLES
