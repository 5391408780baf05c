"""One spelling for module names that libraries have renamed over time.

transformers renamed SegFormer's modules in 5.10 (pull request 41693) and dropped CLIP's `text_model.` level;
its `save_pretrained` still writes SegFormer's old names, its modules carry the new ones. Everything that
compares names compares them as the current modules spell them.
"""

from __future__ import annotations

import re

_SEGFORMER = (
    (r"\bencoder\.patch_embeddings\.(\d+)\.", r"stages.\1.patch_embeddings."),
    (r"\bencoder\.block\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"\bencoder\.layer_norm\.(\d+)\.", r"stages.\1.layer_norm."),
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


def current_name(component: str, name: str) -> str:
    """`name` of a module or tensor inside `component`, as today's libraries spell it."""
    if component.startswith("text_encoder"):
        return name.removeprefix("text_model.")
    if component == "model" and re.search(r"\b(segformer|decode_head)\b", name):
        # The sequence reduction is one module above the two rules that could both match it.
        for pattern, replacement in _SEGFORMER:
            name = re.sub(pattern, replacement, name + ".").removesuffix(".")
    return name
