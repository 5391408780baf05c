"""New tokens in a diffusers pipeline, loaded by diffusers itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hubctl.adapter.new_tokens import TOKENIZERS, read_new_tokens


def load_new_tokens(pipeline: Any, folder: Path) -> None:
    """Teach `pipeline` the tokens that lie in an adapter's folder, where it has some."""
    tokens = read_new_tokens(folder)
    if tokens is None:
        return
    from safetensors.torch import load_file

    vectors = load_file(tokens.file)
    for component, key in tokens.keys.items():
        pipeline.load_textual_inversion(
            vectors[key],
            token=list(tokens.names),
            text_encoder=getattr(pipeline, component),
            tokenizer=getattr(pipeline, TOKENIZERS[component]),
        )
