"""Trains emoji-64's autoencoder: 64 px pictures to 4 x 16 x 16 latents and back.

The latents' mean and spread are pulled towards 0 and 1 per channel over the training mix;
over clean emoji alone the means are -0.5 to 0.5 and the spreads 1 to 1.4.

Shapes: pictures [B, 3, 64, 64] in -1..1; latents [B, 4, 16, 16].
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny

from train.bases.augment import edge_drawings, move, recolour, stroke_drawings
from train.bases.emoji import VENDORS, load_emoji, load_rgba, on_white
from train.bases.precision import autocast
from train.bases.resume import load_checkpoint, rate_at, save_checkpoint, set_rate
from train.bases.workers import Clock, run_workers

LATENT_CHANNELS = 4
LATENT_NOISE = 0.1


def build_vae() -> AutoencoderTiny:
    """Makes the untrained autoencoder: two halvings, 32 channels throughout."""
    return AutoencoderTiny(
        encoder_block_out_channels=(32,) * 3,
        decoder_block_out_channels=(32,) * 3,
        num_encoder_blocks=(1, 2, 3),
        num_decoder_blocks=(3, 3, 1),
        latent_channels=LATENT_CHANNELS,
        scaling_factor=1.0,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Sets:
    """Training pictures, line drawings to mix in, and held-out pictures; float16 in -1..1."""

    pictures: torch.Tensor
    lines: torch.Tensor
    held_out: torch.Tensor

    def quality(self, vae: AutoencoderTiny) -> dict[str, float]:
        """Signal-to-noise of held-out emoji and of line drawings."""
        lines = psnr_db(vae, self.lines[-100:])
        return {"psnr_db": psnr_db(vae, self.held_out), "psnr_lines_db": lines}


def load_sets(data: Path) -> Sets:
    """Reads both vendors' pictures, and makes lines from them and from nothing."""
    emoji = load_emoji(data)
    rgb = np.concatenate([on_white(load_rgba(data, vendor, emoji)) for vendor in VENDORS])
    pictures = _as_input(rgb)
    held_out = torch.tensor([e.held_out for e in emoji] * len(VENDORS))
    lines = [edge_drawings(pictures[~held_out].float()).half()]
    lines.append(_as_input(stroke_drawings(1500, 64, seed=0)))
    return Sets(pictures=pictures[~held_out], lines=torch.cat(lines), held_out=pictures[held_out])


def _as_input(rgb: np.ndarray) -> torch.Tensor:
    """Turns uint8 [N, H, W, 3] into float16 [N, 3, H, W] in -1..1."""
    return (torch.from_numpy(rgb).permute(0, 3, 1, 2).float() / 127.5 - 1).half().contiguous()


def loss_of(vae: AutoencoderTiny, x: torch.Tensor) -> torch.Tensor:
    """Error of the pictures, also at half size, plus the pull of latents to mean 0, spread 1.

    Halved latents must decode to the halved picture: it makes them smooth, so that a diffusion
    model learns them sooner (Skorokhodov et al. 2025, arXiv:2502.14831).
    """
    with autocast():
        z = vae.encode(x).latents
        noise = LATENT_NOISE * torch.randn_like(z)
        y = vae.decode(z + noise).sample
        half = vae.decode(F.avg_pool2d(z, 2)).sample
    std, mean = torch.std_mean(z.float(), dim=(0, 2, 3))
    moments = (mean.square() + (std - 1).square()).mean()
    return picture_loss(y, x) + 0.25 * picture_loss(half, F.avg_pool2d(x, 2)) + 0.05 * moments


def picture_loss(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Error in value, slope and, over 4x4 patches, brightness and hue."""
    y = y.float()
    slope = sum(F.l1_loss(y.diff(dim=axis), x.diff(dim=axis)) for axis in (2, 3))
    # Without these two, outlines are learnt long before hues: red and green come out brown.
    patch = F.avg_pool2d(y - x, 4)
    hue = patch - patch.mean(1, keepdim=True)
    flat = 2 * patch.abs().mean() + 6 * hue.abs().mean()
    return F.l1_loss(y, x) + 2 * F.mse_loss(y, x) + 0.5 * slope + flat


@torch.no_grad()
def psnr_db(vae: AutoencoderTiny, pictures: torch.Tensor) -> float:
    """Mean over pictures of the peak signal-to-noise ratio, pictures in -1..1."""
    errors = [
        (vae.decode(vae.encode(x).latents).sample.clamp(-1, 1) - x).square().mean((1, 2, 3))
        for x in pictures.float().split(50)
    ]
    return float((10 * torch.log10(4 / torch.cat(errors).clamp_min(1e-8))).mean())


def draw_batch(
    pictures: torch.Tensor, lines: torch.Tensor, batch: int, generator: torch.Generator
) -> torch.Tensor:
    """Draws a training batch: half the emoji as they are, a quarter of it line drawings."""
    line_count = batch // 4
    real = pictures[torch.randint(len(pictures), (batch - line_count,), generator=generator)].float()
    line = lines[torch.randint(len(lines), (line_count,), generator=generator)].float()
    changed = (batch - line_count) // 2
    real[:changed] = recolour(move(real[:changed], generator), generator)
    line[: line_count // 3] = move(line[: line_count // 3], generator)
    return torch.cat([real, line]).contiguous(memory_format=torch.channels_last)


def learn(rank: int, clock: Clock, vae: AutoencoderTiny, sets: Sets, args: argparse.Namespace) -> None:
    """One worker's steps; the first worker also reports and saves."""
    torch.manual_seed(clock.steps.value + 1_000_003 * rank)
    generator = torch.Generator().manual_seed(torch.initial_seed())
    optimizer = torch.optim.AdamW(vae.parameters(), lr=args.rate, weight_decay=0.0, fused=True)
    state = load_checkpoint(args.out)
    if state:
        optimizer.load_state_dict(state["optimizer"])
    reported = clock.steps.value
    for step in clock.ticks():
        set_rate(optimizer, rate_at(clock.progress, peak=args.rate))
        loss = loss_of(vae, draw_batch(sets.pictures, sets.lines, args.batch, generator))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        if rank == 0 and step - reported >= 250:
            reported = step
            quality = {name: round(value, 2) for name, value in sets.quality(vae).items()}
            print(f"step {step} {clock.spent_s:.0f} s loss {loss.item():.4f} {quality}", flush=True)
            parts = {"model": vae.state_dict(), "optimizer": optimizer.state_dict()}
            save_checkpoint(args.out, {**parts, "step": step, "spent_s": clock.spent_s})


def main() -> None:
    """Trains for a planned number of minutes, resuming where it stopped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="checkpoint file")
    parser.add_argument("--final", type=Path, required=True, help="finished autoencoder")
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    torch.manual_seed(0)
    sets = load_sets(args.data)
    vae = build_vae().to(memory_format=torch.channels_last)
    state = load_checkpoint(args.out) or {"step": 0, "spent_s": 0.0}
    if "model" in state:
        vae.load_state_dict(state["model"])
    clock = run_workers(
        learn,
        args.workers,
        vae.share_memory(),
        sets,
        args,
        planned_s=args.minutes * 60,
        spent_s=state["spent_s"],
        step=state["step"],
    )
    figures = {"steps": clock.steps.value, "minutes": args.minutes, **sets.quality(vae)}
    print(figures, flush=True)
    save_checkpoint(args.final, {"model": vae.state_dict(), "figures": figures})


if __name__ == "__main__":
    main()
