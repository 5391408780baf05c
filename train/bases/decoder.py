"""Goes on training the autoencoder's decoder alone, so that the latents stay what they are.

A UNet trained on those latents remains right; its pictures get sharper.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from train.bases.latents import load_vae
from train.bases.resume import load_checkpoint, rate_at, save_checkpoint, set_rate
from train.bases.vae import draw_batch, load_sets, loss_of


def main() -> None:
    """Trains the decoder for a planned number of minutes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--vae", type=Path, required=True, help="finished autoencoder to start from")
    parser.add_argument("--final", type=Path, required=True, help="where the better one goes")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    sets, vae = load_sets(args.data), load_vae(args.vae)
    figures = dict((load_checkpoint(args.vae) or {}).get("figures", {}))
    learning = [*vae.decoder.parameters(), *vae.post_quant_conv.parameters()]
    for parameter in learning:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(learning, lr=args.rate, weight_decay=0.0, fused=True)
    generator = torch.Generator().manual_seed(1)
    step, began = 0, time.monotonic()
    while (progress := (time.monotonic() - began) / (args.minutes * 60)) < 1:
        set_rate(optimizer, rate_at(progress, peak=args.rate, warm_up=0.05))
        loss = loss_of(vae, draw_batch(sets.pictures, sets.lines, args.batch, generator))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        step += 1
        if step % 100 == 0:
            print(f"step {step} {progress:.0%} loss {loss.item():.4f}", flush=True)
            save_checkpoint(args.final, {"model": vae.state_dict(), "figures": figures})
    figures |= {"decoder_steps": step, **sets.quality(vae)}
    print(figures, flush=True)
    save_checkpoint(args.final, {"model": vae.state_dict(), "figures": figures})


if __name__ == "__main__":
    main()
