"""What a training step sees: pictures drawn by weight, each with one of its captions, or none."""

from __future__ import annotations

import random

import torch
from transformers import CLIPTokenizer

from train.bases.captions import captions, draw_caption
from train.bases.emoji import VENDORS, Emoji

CAPTION_DROPOUT = 0.1


def draw_weight(emoji: Emoji) -> float:
    """How often an emoji is drawn: people and clock faces less, since so many of them are near-alike."""
    if emoji.held_out:
        return 0.0
    return 0.3 if emoji.group == "people-body" or emoji.subgroup == "time" else 1.0


class Draws:
    """Training batches: pictures by weight, captions by chance."""

    def __init__(self, emoji: list[Emoji], targets: torch.Tensor, tokenizer: CLIPTokenizer) -> None:
        """Takes one target a picture, vendor after vendor; held-out emoji are never drawn."""
        self.rows = [(e, style) for style in VENDORS for e in emoji]
        self.targets = targets
        self.weights = torch.tensor([draw_weight(e) for e in emoji] * len(VENDORS))
        texts = ["", *(text for e, style in self.rows for text in captions(e, style))]
        rows = tokenizer(texts, padding="max_length", truncation=True).input_ids
        self.tokens = dict(zip(texts, torch.tensor(rows), strict=True))

    def batch(self, size: int, rng: random.Random) -> tuple[torch.Tensor, torch.Tensor]:
        """Draws targets [B, ...] and tokens [B, 24]."""
        picked = torch.multinomial(self.weights, size, replacement=False)
        drawn = [self.rows[i] for i in picked.tolist()]
        texts = ["" if rng.random() < CAPTION_DROPOUT else draw_caption(e, style, rng) for e, style in drawn]
        return self.targets[picked], torch.stack([self.tokens[text] for text in texts])
