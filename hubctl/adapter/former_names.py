"""SegFormer's layers as transformers 4 called them, for adapters that are to be loaded there."""

from __future__ import annotations

import re
from collections.abc import Iterable

from hubctl.adapter.names import current_name, renames

_RULES = (
    (r"\bstages\.(\d+)\.patch_embeddings\.", r"encoder.patch_embeddings.\1."),
    (r"\bstages\.(\d+)\.blocks\.(\d+)\.", r"encoder.block.\1.\2."),
    (r"\bstages\.(\d+)\.layer_norm\.", r"encoder.layer_norm.\1."),
    (r"\battention\.sequence_reduction\.sequence_reduction\b", "attention.self.sr"),
    (r"\battention\.sequence_reduction\.layer_norm\b", "attention.self.layer_norm"),
    (r"\battention\.q_proj\b", "attention.self.query"),
    (r"\battention\.k_proj\b", "attention.self.key"),
    (r"\battention\.v_proj\b", "attention.self.value"),
    (r"\battention\.o_proj\b", "attention.output.dense"),
    (r"\blayernorm_before\b", "layer_norm_1"),
    (r"\blayernorm_after\b", "layer_norm_2"),
    (r"\bmlp\.fc(\d)\b", r"mlp.dense\1"),
    (r"\bdecode_head\.linear_projections\.", "decode_head.linear_c."),
)


def former_name(name: str, names: Iterable[str]) -> str:
    """`name` of a module or tensor in SegFormer's former spelling; that of other models stays.

    `names` are all that come together, which tell what model it is.
    """
    several = tuple(names)
    if not any(other.startswith(("segformer.", "decode_head.linear_")) for other in several):
        return name
    found = name + "."
    for pattern, replacement in _RULES:
        found = re.sub(pattern, replacement, found)
    found = found.removesuffix(".")
    return found if current_name(found, renames("model", several)) == name else name
