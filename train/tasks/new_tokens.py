"""Words that a training invents (pivotal tuning): new tokens whose vectors train beside the adapter.

As in diffusers' advanced scripts, the vectors train for the first half of the steps, and the adapter goes on
with what they have become: https://huggingface.co/blog/sdxl_lora_advanced_script. Those scripts pull the
vectors' size towards that of the base's own after each step; here it does not change at all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from hubctl.adapter.new_tokens import KEYS, NAMES, TOKENIZERS, TOKENS_FILE
from hubctl.errors import InputError


class GrownTable(nn.Module):
    """A frozen table of embeddings, and rows that train for numbers from `first` on."""

    start: torch.Tensor

    def __init__(self, table: nn.Embedding, first: int, start: torch.Tensor) -> None:
        """`start` are the rows to begin with, (tokens, width)."""
        super().__init__()
        self.table, self.first = table, first
        self.new_rows = nn.Parameter(start.clone())  # named as train.adapt.NEW_ROWS
        self.register_buffer("start", start)
        self.learnt = True
        """False answers with the rows as they began."""

    def vectors(self) -> torch.Tensor:
        """Of the new tokens, (tokens, width): as long as they began, or they would outshout other words."""
        return self.new_rows * (self.start.norm(dim=1) / self.new_rows.norm(dim=1))[:, None]

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Vectors (..., width) of `ids`."""
        rows = self.vectors() if self.learnt else self.start
        new = rows[(ids - self.first).clamp(min=0)]
        known: torch.Tensor = self.table(ids.clamp(max=self.first - 1))
        return torch.where((ids >= self.first)[..., None], new, known)


def grow(pipeline: Any, encoders: Mapping[str, Any], tokens: Mapping[str, str | None], seed: int) -> None:
    """Teach the pipeline's tokenizers and `encoders`, its CLIPs, new tokens that train.

    Args:
        pipeline: Of diffusers.
        encoders: By their names in it.
        tokens: Name → a word whose vector it begins with; None begins with noise as large as the base's own.
        seed: Of that noise.

    Raises:
        InputError: the base knows a token already.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, encoder in encoders.items():
        tokenizer, table = getattr(pipeline, TOKENIZERS[name]), encoder.get_input_embeddings()
        first, weight = len(tokenizer), table.weight.detach()
        rows = []
        for word in tokens.values():
            noise = torch.randn(weight.shape[1], generator=generator) * float(weight.std())
            numbers = tokenizer(word, add_special_tokens=False).input_ids if word else []
            rows.append(weight[numbers].mean(0) if numbers else noise.to(weight))
        if tokenizer.add_tokens(list(tokens)) < len(tokens):
            raise InputError(
                f"the base knows one of {', '.join(tokens)} already", hint='choose another, e.g. "<my-dog>"'
            )
        encoder.set_input_embeddings(GrownTable(table, first, torch.stack(rows)))


def save_new_tokens(folder: Path, encoders: Mapping[str, Any], names: list[str]) -> None:
    """Write the vectors as diffusers' advanced scripts do, in float32, the tokens' names in the header."""
    keys = {component: key for key, component in KEYS.items()}
    vectors = {
        keys[name]: encoder.get_input_embeddings().vectors().detach().float().cpu().contiguous()
        for name, encoder in encoders.items()
    }
    save_file(vectors, folder / TOKENS_FILE, metadata={NAMES: json.dumps(names)})
