"""Trains emoji-64's UNet, and its text encoder gently along, in the autoencoder's latent space.

Shapes: latents [B, 4, 16, 16]; text states [B, 24, 192]; predictions are velocities.
"""

from __future__ import annotations

import argparse
import copy
import random
from pathlib import Path
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor
from transformers import CLIPTokenizer

from train.bases.captions import train_tokenizer
from train.bases.draws import Draws
from train.bases.emoji import load_emoji
from train.bases.latents import encode_pictures, load_vae
from train.bases.pipeline import build_scheduler, build_text_encoder, build_unet
from train.bases.precision import autocast
from train.bases.resume import load_checkpoint, rate_at, save_checkpoint, set_rate
from train.bases.workers import Clock, run_workers

LOW_NOISE_CAP = 5.0
TEXT_RATE = 0.3  # of the UNet's; 0.1 did for captions that all named a style it knew
EMA_DECAY = 0.998
REPORT_EVERY = 100


class TextToImage(torch.nn.Module):
    """The two parts that learn, under one optimiser and one average."""

    def __init__(self, tokenizer: CLIPTokenizer, latent_channels: int) -> None:
        """Builds both parts untrained."""
        super().__init__()
        self.text_encoder = build_text_encoder(tokenizer)
        self.unet = build_unet(latent_channels)

    def forward(self, noisy: torch.Tensor, t: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Predicts the velocity [B, 4, 16, 16] at timesteps [B] for tokens [B, 24]."""
        states = self.text_encoder(tokens).last_hidden_state
        velocity: torch.Tensor = self.unet(noisy, t, states).sample
        return velocity


def velocity_loss(
    model: TextToImage, latents: torch.Tensor, tokens: torch.Tensor, alphas: torch.Tensor
) -> torch.Tensor:
    """Weighted squared error of the velocity, timesteps t stratified over the batch with density t.

    Late timesteps get more because there the caption alone tells what to draw, which takes
    longest to learn: at equal shares pictures were sharp long before they showed the right thing.
    """
    size, device = len(latents), latents.device
    t = (((torch.arange(size) + torch.rand(size)) / size).sqrt() * len(alphas)).long()
    signal = alphas[t].view(-1, 1, 1, 1).to(device)
    noise = torch.randn_like(latents)
    noisy = signal.sqrt() * latents + (1 - signal).sqrt() * noise
    target = signal.sqrt() * noise - (1 - signal).sqrt() * latents
    with autocast(device.type):
        predicted = model(noisy.contiguous(memory_format=torch.channels_last), t.to(device), tokens)
    # 1 / (1 - signal) is SNR + 1, the weight this loss gives to the picture itself.
    weight = (LOW_NOISE_CAP * (1 - signal)).clamp(max=1.0)
    return (weight * (predicted.float() - target).square()).mean()


def learn(
    rank: int,
    clock: Clock,
    model: TextToImage,
    average: TextToImage,
    draws: Draws,
    args: argparse.Namespace,
) -> None:
    """One worker's steps; the first worker also averages, reports and saves."""
    rng = random.Random(clock.steps.value + 1_000_003 * rank)
    torch.manual_seed(rng.randrange(2**31))
    groups = [
        {"params": model.unet.parameters(), "rate": 1.0},
        # At the full rate the first steps of an untrained UNet would undo what it knows.
        {"params": model.text_encoder.parameters(), "rate": TEXT_RATE},
    ]
    optimizer = torch.optim.AdamW(groups, lr=args.rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    state = load_checkpoint(args.out) or {"losses": []}
    if "optimizer" in state:
        optimizer.load_state_dict(state["optimizer"])
    alphas = build_scheduler().alphas_cumprod
    losses, recent = state["losses"], []
    saved_s, followed = clock.spent_s, clock.steps.value
    for step in clock.ticks():
        set_rate(optimizer, rate_at(clock.progress, peak=args.rate))
        latents, tokens = draws.batch(args.batch, rng)
        loss = velocity_loss(model, latents.to(args.device), tokens.to(args.device), alphas)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        recent.append(loss.item())
        if rank:
            continue
        follow(average, model, step, step - followed)
        followed = step
        if len(recent) == REPORT_EVERY:
            losses.append((step, round(sum(recent) / len(recent), 4)))
            print(f"step {step} {clock.spent_s:.0f} s loss {losses[-1][1]}", flush=True)
            recent = []
        if clock.spent_s - saved_s > args.save_every_s or clock.progress == 1:
            saved_s = clock.spent_s
            parts: dict[str, Any] = {"model": model.state_dict(), "average": average.state_dict()}
            parts |= {"optimizer": optimizer.state_dict(), "losses": losses}
            save_checkpoint(args.out, {**parts, "step": step, "spent_s": saved_s})


@torch.no_grad()
def follow(average: TextToImage, model: TextToImage, step: int, passed: int) -> None:
    """Moves the running average towards the model, `passed` steps on; quicker while training is young."""
    decay = min(EMA_DECAY, (10 + step) / (100 + step)) ** passed
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)


def load_exported(model: TextToImage, folder: Path) -> None:
    """Takes over the weights that `train.bases.export` wrote."""
    for part, name in ((model.text_encoder, "text_encoder"), (model.unet, "unet")):
        part.load_state_dict(type(part).from_pretrained(folder, subfolder=name).state_dict())


def trained_text_encoder(checkpoint: Path | None) -> dict[str, Any]:
    """Reads what `train.bases.text_encoder` wrote."""
    state = load_checkpoint(checkpoint) if checkpoint else None
    if state is None:
        raise SystemExit("name a text encoder's checkpoint with --text; train.bases.text_encoder makes it")
    weights: dict[str, Any] = state["model"]
    return weights


def train(args: argparse.Namespace) -> None:
    """Trains until the planned minutes are spent, saving now and then and at the end."""
    emoji = load_emoji(args.data)
    tokenizer = train_tokenizer(emoji)
    vae = load_vae(args.vae)
    draws = Draws(emoji, encode_pictures(vae, args.data, emoji), tokenizer)
    model = TextToImage(tokenizer, vae.config.latent_channels).to(args.device)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch types it for tensors only
    average = copy.deepcopy(model).requires_grad_(False)
    if args.device == "cpu":
        # The backward pass of fused attention is slow there: it took a fifth of a step.
        model.unet.set_attn_processor(AttnProcessor())
    state = load_checkpoint(args.out) or {"step": 0, "spent_s": 0.0}
    if "model" in state:
        model.load_state_dict(state["model"])
    elif args.start:
        load_exported(model, args.start)
    else:
        model.text_encoder.load_state_dict(trained_text_encoder(args.text))
    average.load_state_dict(state.get("average", model.state_dict()))
    run_workers(
        learn,
        args.workers,
        model.share_memory(),
        average.share_memory(),
        draws,
        args,
        planned_s=args.minutes * 60,
        spent_s=state["spent_s"],
        step=state["step"],
    )


def main() -> None:
    """Reads the arguments and trains."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument(
        "--vae", type=Path, required=True, help="autoencoder checkpoint, or an exported folder"
    )
    parser.add_argument("--out", type=Path, required=True, help="checkpoint file")
    parser.add_argument("--text", type=Path, help="text encoder checkpoint to begin with")
    parser.add_argument("--start", type=Path, help="exported pipeline folder to go on from")
    parser.add_argument("--device", default="cpu", help="with cuda, take one worker")
    parser.add_argument(
        "--workers", type=int, default=2, help="processes of one thread each; one uses all threads"
    )
    parser.add_argument("--minutes", type=float, default=150)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--save-every-s", type=float, default=180)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
