"""Trains emoji-64-judge on real pictures that went through emoji-64's own autoencoder.

Without that pass it would learn how sharp originals are, which no generated picture is.

Shapes: pictures uint8 [N, 3, 64, 64].
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from safetensors.torch import save_file

from train.bases.emoji import VENDORS, Emoji, load_emoji, load_rgba, on_white
from train.bases.latents import load_vae
from train.bases.precision import autocast
from train.bases.resume import rate_at, set_rate
from train.bases.samples import LINE_COUNT, line_drawing, pick_lines
from train.judge import Judge

STYLES = [*VENDORS, "openmoji-line"]
MOST_LATENT_NOISE = 0.2


@dataclass(frozen=True, kw_only=True, slots=True)
class Labelled:
    """Pictures with both answers and which of them are held out."""

    pictures: torch.Tensor
    styles: torch.Tensor
    subgroups: torch.Tensor
    held_out: torch.Tensor


def load_labelled(data: Path, vae: AutoencoderTiny, subgroups: list[str]) -> Labelled:
    """Reads all three styles and passes them through the autoencoder."""
    emoji = load_emoji(data)
    in_demo = {e.hexcode for part in pick_lines(emoji, LINE_COUNT) for e in part}
    lined = [e for e in emoji if e.hexcode not in in_demo]
    drawings = np.stack([np.asarray(line_drawing(data, e.hexcode, 64)) for e in lined])
    sets = [(on_white(load_rgba(data, vendor, emoji)), emoji) for vendor in VENDORS]
    sets.append((drawings, lined))
    originals = np.concatenate([pictures for pictures, _ in sets])
    rows: list[tuple[int, Emoji]] = [(style, e) for style, (_, drawn) in enumerate(sets) for e in drawn]
    return Labelled(
        pictures=through_vae(vae, originals),
        styles=torch.tensor([style for style, _ in rows]),
        subgroups=torch.tensor([subgroups.index(e.subgroup) for _, e in rows]),
        held_out=torch.tensor([e.held_out for _, e in rows]),
    )


@torch.no_grad()
def through_vae(vae: AutoencoderTiny, pictures: np.ndarray) -> torch.Tensor:
    """Encodes, adds some noise to the latents and decodes uint8 [N, 64, 64, 3] -> [N, 3, 64, 64]."""
    out = []
    for part in torch.from_numpy(pictures).permute(0, 3, 1, 2).split(64):
        with autocast():
            z = vae.encode(part.float() / 127.5 - 1).latents
            noise = MOST_LATENT_NOISE * torch.rand(len(z), 1, 1, 1)
            y = vae.decode(z + noise * torch.randn_like(z)).sample
        out.append(((y.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8))
    return torch.cat(out)


def vary(pictures: torch.Tensor) -> torch.Tensor:
    """Light augmentation of float pictures in -1..1: shift, zoom, blur, noise, brightness."""
    count = len(pictures)
    zoom = torch.exp((torch.rand(count) - 0.5) * 0.3)
    shift = (torch.rand(count, 2, 1) - 0.5) * 0.25
    rows = torch.cat([torch.diag_embed(zoom[:, None].expand(-1, 2)), shift], 2)
    grid = F.affine_grid(rows, list(pictures.shape), align_corners=False)
    moved = 1 - F.grid_sample(1 - pictures, grid, align_corners=False)
    blurred = F.avg_pool2d(F.pad(moved, (1, 1, 1, 1), mode="replicate"), 3, 1)
    share = torch.rand(count, 1, 1, 1) * (torch.rand(count, 1, 1, 1) < 0.5)
    mixed = moved * (1 - share) + blurred * share
    mixed = mixed + torch.randn(count, 3, 1, 1) * 0.05
    return mixed + torch.randn_like(mixed) * 0.1 * torch.rand(count, 1, 1, 1)


def train(judge: Judge, known: Labelled, minutes: float, rate: float, batch: int) -> int:
    """Trains for a number of minutes; returns the steps made."""
    rows = torch.nonzero(~known.held_out)[:, 0]
    optimizer = torch.optim.AdamW(judge.parameters(), lr=rate, weight_decay=0.05)
    step, began = 0, time.monotonic()
    judge.train()
    while (spent_s := time.monotonic() - began) < minutes * 60:
        set_rate(optimizer, rate_at(spent_s / (minutes * 60), peak=rate, warm_up=0.05))
        picked = rows[torch.randint(len(rows), (batch,))]
        pictures = vary(known.pictures[picked].float() / 127.5 - 1)
        style, subgroup = judge(pictures)
        loss = F.cross_entropy(style, known.styles[picked]) + F.cross_entropy(
            subgroup, known.subgroups[picked], label_smoothing=0.05
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        if step % 200 == 0:
            print(f"step {step} {spent_s:.0f} s loss {loss.item():.3f}", flush=True)
    return step


def accuracies(judge: Judge, known: Labelled, rows: torch.Tensor) -> dict[str, float]:
    """Share of right answers of both heads on some rows."""
    pictures = known.pictures[rows].permute(0, 2, 3, 1).numpy()
    styles, subgroups = judge.predict(pictures)
    right_style = [s == judge.styles[i] for s, i in zip(styles, known.styles[rows], strict=True)]
    right_group = [s == judge.subgroups[i] for s, i in zip(subgroups, known.subgroups[rows], strict=True)]
    return {
        "style": round(float(np.mean(right_style)), 4),
        "subgroup": round(float(np.mean(right_group)), 4),
    }


def save_judge(judge: Judge, folder: Path, figures: dict[str, object]) -> None:
    """Writes config.json (answers, widths, figures) and float16 model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architecture": "train.judge.Judge",
        "styles": judge.styles,
        "subgroups": judge.subgroups,
        "widths": list(judge.widths),
        "figures": figures,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file(
        {name: value.half().contiguous() for name, value in judge.state_dict().items()},
        folder / "model.safetensors",
    )


def main() -> None:
    """Trains and saves the judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--vae", type=Path, required=True, help="finished autoencoder")
    parser.add_argument("--export", type=Path, required=True, help="folder to write")
    parser.add_argument("--minutes", type=float, default=6)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=2e-3)
    args = parser.parse_args()
    torch.manual_seed(0)
    subgroups = sorted({e.subgroup for e in load_emoji(args.data)})
    known = load_labelled(args.data, load_vae(args.vae), subgroups)
    judge = Judge(styles=STYLES, subgroups=subgroups)
    step = train(judge, known, args.minutes, args.rate, args.batch)
    figures: dict[str, object] = {
        "steps": step,
        "held_out": accuracies(judge, known, torch.nonzero(known.held_out)[:, 0]),
        "training": accuracies(judge, known, torch.nonzero(~known.held_out)[::7, 0]),
    }
    print(figures, flush=True)
    save_judge(judge, args.export, figures)


if __name__ == "__main__":
    main()
