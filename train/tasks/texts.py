"""Prompts as the denoiser takes them: encoded once, or anew at each use while a text encoder trains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from train.tasks.denoisers import Conditions, join, take

BATCH = 16

LARGE_ENCODER_METHOD = "_get_t5_prompt_embeds"
"""What the pipelines with a T5 (SD3's, Flux's) ask it by; T5 never trains."""


class Texts:
    """Some prompts. One prompt alone serves for every index."""

    def __init__(
        self, prompts: Sequence[str], encode: Callable[[Sequence[str]], Conditions], *, fixed: bool
    ) -> None:
        """`fixed`: the encoders do not change, so what they say now is what they will say."""
        self._prompts, self._encode = tuple(prompts), encode
        with torch.no_grad():
            parts = [encode(prompts[start : start + BATCH]) for start in range(0, len(prompts), BATCH)]
        self._encoded = join(parts) if fixed else None

    def __len__(self) -> int:
        return len(self._prompts)

    def take(self, indices: Sequence[int]) -> Conditions:
        """Conditions of the prompts `indices`, each [B, ...]; with gradients where an encoder trains."""
        if self._encoded is not None:
            return take(self._encoded, indices)
        chosen = [self._prompts[index if len(self) > 1 else 0] for index in indices]
        once = list(dict.fromkeys(chosen))
        return take(self._encode(once), [once.index(prompt) for prompt in chosen])


def remember_large_encoder(pipeline: Any) -> None:
    """Let the pipeline's T5 read each prompt only once, so that it can go when all have been read."""
    ask = getattr(pipeline, LARGE_ENCODER_METHOD)
    known: dict[str, torch.Tensor] = {}

    def remembered(*, prompt: str | Sequence[str], **settings: Any) -> torch.Tensor:
        prompts = [prompt] if isinstance(prompt, str) else prompt
        missing = [text for text in dict.fromkeys(prompts) if text not in known]
        if missing:
            # Rows have one length, so what a prompt becomes does not depend on its neighbours.
            known.update(zip(missing, ask(prompt=missing, **settings), strict=True))
        return torch.stack([known[text] for text in prompts])

    setattr(pipeline, LARGE_ENCODER_METHOD, remembered)
