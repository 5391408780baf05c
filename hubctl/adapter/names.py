"""One spelling for module names that libraries have renamed over time.

transformers renamed the modules of SegFormer, BEiT, Swin and DINOv2 in 5.x (pull request 41693 and others)
and dropped CLIP's `text_model.` level; its `save_pretrained` still writes the old names, its modules carry
the new ones. Everything that compares names compares them as the current modules spell them; but where one
old name became several, everything keeps the old one: `backbone.encoder.layer` is what the layers of a vision
transformer below another model were called, and an adapter does not say whether of ViT, BEiT or DINOv2.

One name does not say which rules it needs: `decode_head.bottleneck` is an old name in BEiT, a current one in
UperNet. So the rules are chosen by all the names that come together, of a base or of an adapter.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

Renames = tuple[tuple[str, str], ...]
"""Pattern and replacement, applied in this order; what is current already stays as it is."""

_CLIP: Renames = ((r"^text_model\.", ""),)
_SEGFORMER: Renames = (
    (r"\bencoder\.patch_embeddings\.(\d+)\.", r"stages.\1.patch_embeddings."),
    (r"\bencoder\.block\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"\bencoder\.layer_norm\.(\d+)\.", r"stages.\1.layer_norm."),
    # The sequence reduction is one module above the two rules that could both match it.
    (r"\battention\.self\.(?:sr|sequence_reduction)\b", "attention.sequence_reduction.sequence_reduction"),
    (r"\battention\.self\.layer_norm\b", "attention.sequence_reduction.layer_norm"),
    (r"\battention\.self\.query\b", "attention.q_proj"),
    (r"\battention\.self\.key\b", "attention.k_proj"),
    (r"\battention\.self\.value\b", "attention.v_proj"),
    (r"\battention\.output\.dense\b", "attention.o_proj"),
    (r"\blayer_norm_1\b", "layernorm_before"),
    (r"\blayer_norm_2\b", "layernorm_after"),
    (r"\bmlp\.dense1\b", "mlp.fc1"),
    (r"\bmlp\.dense2\b", "mlp.fc2"),
    (r"\bdecode_head\.linear_c\.", "decode_head.linear_projections."),
)
_VIT: Renames = (
    (r"\battention\.(?:attention|self)\.query\b", "attention.q_proj"),
    (r"\battention\.(?:attention|self)\.key\b", "attention.k_proj"),
    (r"\battention\.(?:attention|self)\.value\b", "attention.v_proj"),
    (r"\battention\.output\.dense\b", "attention.o_proj"),
    (r"\bintermediate\.dense\b", "mlp.fc1"),
    (r"\boutput\.dense\b", "mlp.fc2"),
)
# The UPerNet head that BEiT and Data2Vec share.
_UPER_HEAD: Renames = (
    (r"\bdecode_head\.bottleneck\.", "decode_head.psp_bottleneck."),
    (r"\bpsp_modules\.(\d+)\.1\.", r"psp_modules.blocks.\1.conv."),
    (r"\b(convs\.\d+|conv_cat|\w+_convs\.\d+|\w+_bottleneck|blocks\.\d+\.conv)\.conv\.", r"\1.convolution."),
    (r"\b(convs\.\d+|conv_cat|\w+_convs\.\d+|\w+_bottleneck|blocks\.\d+\.conv)\.bn\.", r"\1.normalization."),
)
_BEIT_PARTS: Renames = (
    (r"\bencoder\.relative_position_bias\b", "shared_position_bias"),
    (r"\battention\.attention\.relative_position_bias\b", "relative_position_bias"),
    (r"^(backbone\.)?fpn1\.0\.", r"\1fpn.fpn1.conv_transpose1."),
    (r"^(backbone\.)?fpn1\.1\.", r"\1fpn.fpn1.normalization."),
    (r"^(backbone\.)?fpn1\.3\.", r"\1fpn.fpn1.conv_transpose2."),
    (r"^(backbone\.)?fpn1\.", r"\1fpn.fpn1."),
    (r"^(backbone\.)?fpn2\.0\.", r"\1fpn.fpn2."),
)
_BEIT: Renames = (
    (r"\bencoder\.layer\.", "layers."),
    *_BEIT_PARTS,
    *_VIT,
    *_UPER_HEAD,
)
_VIT_BACKBONE: Renames = (
    # People who write the class around a backbone themselves call it what transformers' own classes do.
    (r"^(vit|dinov2|dinov2_with_registers|dinov3_vit)\.", "backbone."),
    (r"^backbone\.beit\.", "backbone."),
    (r"^backbone\.layers\.", "backbone.encoder.layer."),
    (r"^backbone\.layer\.", "backbone.model.layer."),  # DINOv3
    *_BEIT_PARTS,
    *_VIT,
)
_SWIN_BACKBONE: Renames = (
    (r"^backbone\.(embeddings|encoder)\.", r"backbone.swin.\1."),
    (r"\bself\.relative_position_bias_table\b", "relative_position_bias.relative_position_bias_table"),
    *_VIT,
)

_MARKS: tuple[tuple[str, Renames], ...] = (
    (r"segformer\.|decode_head\.linear_(c|fuse|projections)\.", _SEGFORMER),
    (r"beit\.", _BEIT),
    (r"data2vec_vision\.", _UPER_HEAD),
    (r"backbone\.(swin\.)?encoder\.layers\.\d+\.blocks\.", _SWIN_BACKBONE),
    (
        r"(backbone\.(beit\.)?|vit\.|dinov2\.|dinov2_with_registers\.|dinov3_vit\.)"
        r"(encoder\.layer|layers|(model\.)?layer)\.\d+\.",
        _VIT_BACKBONE,
    ),
)
"""What a name begins with where the rules apply."""


def renames(component: str, names: Iterable[str]) -> Renames:
    """The rules for `names`, all modules or tensors inside `component` of one base or one adapter."""
    if component.startswith("text_encoder"):
        return _CLIP
    if component == "model":
        several = tuple(names)
        for mark, rules in _MARKS:
            if any(re.match(mark, name) for name in several):
                return rules
    return ()


@lru_cache(maxsize=1 << 14)  # adapters of one base have the same names
def current_name(name: str, rules: Renames) -> str:
    """`name` of a module or tensor, as today's libraries spell it."""
    name += "."  # a module's name ends where a tensor's goes on
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name.removesuffix(".")
