"""Which family of base models names and widths of layers point to, whatever dialect spells them.

Dots and underscores are one here, since kohya writes `down_blocks_1_attentions_0` for what others call
`down_blocks.1.attentions.0`. The widths are those of the published models' own configurations.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

TITLES = {
    "sd1": "Stable Diffusion 1.x",
    "sd2": "Stable Diffusion 2.x",
    "sdxl": "SDXL",
    "sd3": "SD3",
    "flux": "FLUX.1",
    "flux2": "FLUX.2",
    "flux2-klein": "FLUX.2 Klein",
    "qwen-image": "Qwen-Image",
    "z-image": "Z-Image",
    "sana": "Sana",
    "pixart": "PixArt",
    "lumina2": "Lumina 2",
    "auraflow": "AuraFlow",
    "hidream": "HiDream",
    "hunyuan-video": "HunyuanVideo",
    "ltx-video": "LTX-Video",
    "cogvideox": "CogVideoX",
    "wan": "Wan",
}
"""Families by the names that this file gives them, and as people write them."""


class Place(NamedTuple):
    """Where a layer is, and how wide."""

    component: str
    module: str
    ins: int | None
    outs: int | None


_FLUX2 = {6144: "flux2", 3072: "flux2-klein", 4096: "flux2-klein"}
_BFL = {3072: "flux", 4096: "flux2-klein", 6144: "flux2"}
# Pattern of a layer's name, and the family, or the family by its input width. What tells more comes first.
_RULES: tuple[tuple[str, str | Mapping[int, str]], ...] = (
    (r"joint_transformer_blocks_\d", "auraflow"),
    (r"(double|single)_stream_blocks_\d", "hidream"),
    (r"double_blocks_\d+_(img|txt)_(mlp_fc|mod_linear)", "hunyuan-video"),
    (r"double_blocks_19_|single_(transformer_)?blocks_3[89]_", {3072: "hunyuan-video"}),
    (r"transformer_blocks_\d+_(img|txt)_m(lp|od)_", "qwen-image"),
    # Qwen-Image has 60 blocks of two streams, HunyuanVideo 20, Flux 19.
    (r"(?<!single_)transformer_blocks_[2-5]\d_attn_(add|to)_", {3072: "qwen-image"}),
    (r"single_transformer_blocks_\d+_attn_to_(qkv_mlp_proj|out$)", _FLUX2),
    (r"transformer_blocks_\d+_ff(_context)?_linear_in", _FLUX2),
    (r"joint_blocks_\d+_(x|context)_block_", "sd3"),
    (r"attn2_to_[kv]$", {768: "sd1", 1024: "sd2", 2048: "sdxl"}),
    (r"(layers|refiner)_\d+_attention_", {3840: "z-image", 2304: "lumina2"}),
    (r"(layers|refiner)_\d+_attn_to_", {2304: "lumina2"}),
    (
        r"transformer_blocks_\d+_attn1_to_",
        {2240: "sana", 2048: "ltx-video", 1920: "cogvideox", 3072: "cogvideox"},
    ),
    (r"transformer_blocks_\d+_ff_net_0_proj", {1152: "pixart"}),
    (r"^blocks_\d+_((self|cross)_attn_[qkvo]$|attn[12]_to_)", {1536: "wan", 3072: "wan", 5120: "wan"}),
    (r"transformer_blocks_\d+_attn_(to|add)_", {1536: "sd3", 2432: "sd3", **_BFL}),
    (r"single_transformer_blocks_\d+_proj_", "flux"),
    (r"double_blocks_\d+_((img|txt)_|qkv_lora|proj_lora)", _BFL),
    (r"single_blocks_\d+_", _BFL),
    # Self-attention alone: only SDXL is ten transformers deep, and has its original names in kohya's files.
    (r"attentions_\d+_transformer_blocks_[2-9]_|(in|out)put_blocks_\d+_1_transformer_blocks_", "sdxl"),
)  # fmt: skip
_PATTERNS = tuple(re.compile(pattern) for pattern, _ in _RULES)
_DENOISER = re.compile(
    r"(down|up|mid|middle|input|output|double|single|joint|transformer)_block|^(blocks|layers)_"
)
_UNET_ONLY = {"sd1", "sd2", "sdxl"}
_KLEIN_4B_OUTS = {27648, 18432}  # of single_blocks' linear1 and img_mlp.0; FLUX.1 has 21504 and 12288

# In what people and trainers call a base. The first that is found counts.
_STATED: tuple[tuple[str, str], ...] = (
    (r"flux[._-]?2[._-]klein|klein", "flux2-klein"),
    (r"flux[._-]?2", "flux2"),
    (r"chroma", ""),  # Flux's layers without some of them: neither the same nor another by its shapes
    (r"flux", "flux"),
    (r"sdxl|sd[_-]?xl|stable-diffusion-xl|pony|illustrious|noob|animagine", "sdxl"),
    (r"sd[_-]?3|stable-diffusion-3", "sd3"),
    (r"sd[_-]?v?2|stable-diffusion-v?2", "sd2"),
    (r"sd[_-]?v?1|stable-diffusion-v?1|^sd[_ -]?1\.", "sd1"),
    (r"qwen-?_?image", "qwen-image"),
    (r"z-?_?image", "z-image"),
    (r"\bsana", "sana"),
    (r"pixart", "pixart"),
    (r"lumina", "lumina2"),
    (r"aura-?_?flow", "auraflow"),
    (r"hidream", "hidream"),
    (r"hunyuan-?_?video", "hunyuan-video"),
    (r"\bltx", "ltx-video"),
    (r"cogvideo", "cogvideox"),
    (r"\bwan", "wan"),
)


def family_of(places: Iterable[Place]) -> str | None:
    """The family (a key of `TITLES`) that most of the layers which tell it point to, or None."""
    votes: dict[int, Counter[str]] = {}
    encoders = set()
    for component, module, ins, outs in places:
        if component.startswith("text_encoder"):
            encoders.add((component, ins))
            continue
        flat = module.replace(".", "_")
        if component == "model" and not _DENOISER.search(flat):
            continue
        for number, pattern in enumerate(_PATTERNS):
            if pattern.search(flat):
                family = _RULES[number][1]
                name = family if isinstance(family, str) else family.get(ins or 0)
                if name in _UNET_ONLY and component == "transformer":
                    name = None
                if name == "flux" and outs in _KLEIN_4B_OUTS and "norm" not in flat and "mod" not in flat:
                    name = "flux2-klein"
                if name:
                    votes.setdefault(number, Counter())[name] += 1
                    break
    if votes:
        best = votes[min(votes)]
        return "flux2-klein" if "flux2-klein" in best else best.most_common(1)[0][0]
    return "sd2" if ("text_encoder", 1024) in encoders else None


def stated_family(base: str) -> str | None:
    """The family of what a card or a trainer calls the base (`runwayml/stable-diffusion-v1-5`), or None."""
    for pattern, family in _STATED:
        if re.search(pattern, base.lower()):
            return family or None
    return None
