"""Trains emoji-64's text encoder alone first: from a caption to its picture's principal components.

A UNet that starts with a text encoder that knows nothing must learn words and drawing at once, and
learns hardly more of a caption than its colours. With one whose states already tell the picture,
linearly, 100 steps of 48 got its error at late timesteps (t >= 850) to 0.67 of 1.3; without, 9,800 steps
had got to 0.76 (at t = 950).

Shapes: latents [N, 4, 16, 16]; codes [N, 192]; tokens [B, 24]; text states [B, 24, 192].
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch
from transformers import CLIPTextModel

from train.bases.captions import train_tokenizer
from train.bases.draws import Draws
from train.bases.emoji import VENDORS, load_emoji
from train.bases.latents import encode_pictures, load_vae
from train.bases.pipeline import TEXT_WIDTH, build_text_encoder
from train.bases.resume import rate_at, save_checkpoint, set_rate
from train.bases.workers import Clock, run_workers

REPORT_EVERY = 50


class CodeReader(torch.nn.Module):
    """The text encoder and a linear layer that reads a picture's code from the mean of its states."""

    def __init__(self, text_encoder: CLIPTextModel) -> None:
        """Takes the encoder to train; the layer is thrown away afterwards."""
        super().__init__()
        self.text_encoder = text_encoder
        self.head = torch.nn.Linear(TEXT_WIDTH, TEXT_WIDTH)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Predicts codes [B, 192] of tokens [B, 24]."""
        codes: torch.Tensor = self.head(self.text_encoder(tokens).last_hidden_state.mean(1))
        return codes


def principal_codes(latents: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """The pictures' first principal components, [N, 192], of total variance 1 over the known ones.

    Each is divided by the square root of its deviation, half way to whitening: as they are, the
    first few, which are colours, would be all that counts.

    Args:
        latents: all pictures, [N, 4, 16, 16].
        known: which of them the components may be made from, bool [N].
    """
    flat = latents.flatten(1)
    centred = flat - flat[known].mean(0)
    _, _, axes = torch.linalg.svd(centred[known], full_matrices=False)
    codes = centred @ axes[:TEXT_WIDTH].T
    codes = codes / codes[known].std(0).sqrt()
    scaled: torch.Tensor = codes / codes[known].var(0).sum().sqrt()
    return scaled


def learn(rank: int, clock: Clock, reader: CodeReader, draws: Draws, args: argparse.Namespace) -> None:
    """One worker's steps; the first worker also reports the share of variance not yet told, and saves."""
    rng = random.Random(clock.steps.value + 1_000_003 * rank)
    torch.manual_seed(rng.randrange(2**31))
    optimizer = torch.optim.AdamW(reader.parameters(), lr=args.rate, betas=(0.9, 0.99), fused=True)
    recent: list[float] = []
    for step in clock.ticks():
        set_rate(optimizer, rate_at(clock.progress, peak=args.rate))
        codes, tokens = draws.batch(args.batch, rng)
        loss = (reader(tokens) - codes).square().sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
        optimizer.step()
        recent.append(loss.item())
        if rank == 0 and len(recent) == REPORT_EVERY:
            print(f"step {step} {clock.spent_s:.0f} s untold {sum(recent) / len(recent):.3f}", flush=True)
            recent = []
            save_checkpoint(args.out, {"model": reader.text_encoder.state_dict(), "step": step})


def main() -> None:
    """Trains for a planned number of minutes, from the start."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--vae", type=Path, required=True, help="autoencoder checkpoint, or exported folder")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint file")
    parser.add_argument("--minutes", type=float, default=12)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    torch.manual_seed(0)
    emoji = load_emoji(args.data)
    known = torch.tensor([not e.held_out for e in emoji] * len(VENDORS))
    codes = principal_codes(encode_pictures(load_vae(args.vae), args.data, emoji), known)
    tokenizer = train_tokenizer(emoji)
    reader = CodeReader(build_text_encoder(tokenizer)).share_memory()
    draws = Draws(emoji, codes, tokenizer)
    clock = run_workers(
        learn, args.workers, reader, draws, args, planned_s=args.minutes * 60, spent_s=0.0, step=0
    )
    state = {"model": reader.text_encoder.state_dict(), "step": clock.steps.value}
    save_checkpoint(args.out, state)


if __name__ == "__main__":
    main()
