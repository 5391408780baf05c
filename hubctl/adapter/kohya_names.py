"""Names of layers in kohya's files: paths whose dots became underscores, also of Stability's own SDXL UNet.

`down_blocks_0_attentions_0_proj_in` is `down_blocks.0.attentions.0.proj_in` of diffusers' UNet: which
underscores were dots, only a list of the words that hold underscores can tell. Files that sd-scripts trained
for SDXL name the layers of Stability's UNet instead (`input_blocks_1_0_in_layers_2`).
"""

from __future__ import annotations

import re

_WORDS = (
    # UNet2DConditionModel
    "down_blocks", "mid_block", "up_blocks", "transformer_blocks", "conv_in", "conv_out", "conv_shortcut",
    "proj_in", "proj_out", "to_q", "to_k", "to_v", "to_out", "add_k_proj", "add_v_proj", "to_add_out",
    "time_emb_proj", "time_embedding", "add_embedding", "class_embedding", "linear_1", "linear_2",
    "cond_proj", "encoder_hid_proj",
    # CLIPTextModel
    "text_model", "self_attn", "q_proj", "k_proj", "v_proj", "out_proj", "text_projection",
)  # fmt: skip
_TOKEN = re.compile("|".join(sorted(_WORDS, key=len, reverse=True)) + "|[a-z0-9]+")

_ROOTS = re.compile(
    r"(down_blocks|up_blocks)\.\d+\.|mid_block\.|conv_(in|out)$|(time|add|class)_embedding\.|encoder_hid_proj"
    r"|text_model\.(encoder\.layers\.\d+|embeddings)\.|text_projection$"
)
"""How the paths begin that the two models have."""

_RESNET = {
    "in_layers_2": "conv1",
    "out_layers_3": "conv2",
    "emb_layers_1": "time_emb_proj",
    "skip_connection": "conv_shortcut",
}
_RESNET_BACK = {new: old for old, new in _RESNET.items()}
_OUTSIDE = {
    "input_blocks_0_0": "conv_in",
    "out_2": "conv_out",
    "time_embed_0": "time_embedding_linear_1",
    "time_embed_2": "time_embedding_linear_2",
    "label_emb_0_0": "add_embedding_linear_1",
    "label_emb_0_2": "add_embedding_linear_2",
}
_OUTSIDE_BACK = {new: old for old, new in _OUTSIDE.items()}
# Two resnets to a block on the way down and three on the way up, as in every UNet of Stability's.
_BLOCK = 3


def flat(path: str) -> str:
    """The path of a layer as kohya spells it."""
    return path.replace(".", "_")


def dotted(name: str) -> str | None:
    """The path in diffusers' UNet or a CLIP text encoder of kohya's `name`; None if neither has it."""
    plain = from_sgm(name)
    path = ".".join(_TOKEN.findall(plain))
    return path if flat(path) == plain and _ROOTS.match(path) else None


def from_sgm(name: str) -> str:
    """A layer of Stability's UNet as diffusers' UNet calls it (still flat); other names stay as they are."""
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    found = re.fullmatch(r"(input_blocks|middle_block|output_blocks)_(\d{1,3})_(.+)", name)
    if not found:
        return name
    where, number, rest = found[1], int(found[2]), found[3]
    if where == "middle_block":
        kind, place = ("attentions", 0) if number == 1 else ("resnets", number // 2)
        return f"mid_block_{kind}_{place}_{_RESNET.get(rest, rest)}"
    inner, _, rest = rest.partition("_")
    side = "down" if where == "input_blocks" else "up"
    block, place = divmod(number - 1 if side == "down" else number, _BLOCK)
    if rest in ("op", "conv"):
        return f"{side}_blocks_{block}_{side}samplers_0_conv"
    kind = "attentions" if inner == "1" else "resnets"
    return f"{side}_blocks_{block}_{kind}_{place}_{_RESNET.get(rest, rest)}"


def to_sgm(name: str) -> str:
    """A layer of SDXL's UNet in diffusers (flat) as Stability's calls it; other names stay as they are."""
    if name in _OUTSIDE_BACK:
        return _OUTSIDE_BACK[name]
    if found := re.fullmatch(r"mid_block_(resnets|attentions)_(\d)_(.+)", name):
        number = 1 if found[1] == "attentions" else 2 * int(found[2])
        return f"middle_block_{number}_{_RESNET_BACK.get(found[3], found[3])}"
    found = re.fullmatch(r"(down|up)_blocks_(\d+)_(resnets|attentions|\w+samplers)_(\d+)_(.+)", name)
    if not found:
        return name
    block, place, rest = int(found[2]), int(found[4]), _RESNET_BACK.get(found[5], found[5])
    if found[3] == "downsamplers":
        return f"input_blocks_{block * _BLOCK + _BLOCK}_0_op"
    if found[3] == "upsamplers":  # behind a resnet and an attention, in both blocks of SDXL that have one
        return f"output_blocks_{block * _BLOCK + _BLOCK - 1}_2_conv"
    inner = int(found[3] == "attentions")
    if found[1] == "down":
        return f"input_blocks_{block * _BLOCK + place + 1}_{inner}_{rest}"
    return f"output_blocks_{block * _BLOCK + place}_{inner}_{rest}"
