"""The training pictures as latents, computed once and kept in memory.

Shapes: latents [N, 4, 16, 16], per channel with a mean of -0.5 to 0.5 and a spread of 1 to 1.4.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderTiny

from train.bases.emoji import VENDORS, Emoji, load_rgba, on_white
from train.bases.resume import load_checkpoint
from train.bases.vae import build_vae


def load_vae(checkpoint: Path) -> AutoencoderTiny:
    """Builds the trained autoencoder, frozen, from a checkpoint or from a pipeline's folder."""
    vae = build_vae()
    if checkpoint.is_dir():
        # Only its weights: saved again, its config would tell the folder that it came from.
        vae.load_state_dict(AutoencoderTiny.from_pretrained(checkpoint, subfolder="vae").state_dict())
    elif state := load_checkpoint(checkpoint):
        vae.load_state_dict(state["model"])
    else:
        raise SystemExit(f"no autoencoder checkpoint at {checkpoint}; run train.bases.vae first")
    return vae.eval().requires_grad_(False)


@torch.no_grad()
def encode_pictures(vae: AutoencoderTiny, data: Path, emoji: list[Emoji]) -> torch.Tensor:
    """Encodes every vendor's pictures, vendor after vendor, in the emoji's order."""
    latents = []
    for vendor in VENDORS:
        rgb = torch.from_numpy(on_white(load_rgba(data, vendor, emoji))).permute(0, 3, 1, 2)
        latents += [vae.encode(part.float() / 127.5 - 1).latents for part in rgb.split(64)]
    return torch.cat(latents) * vae.config.scaling_factor
