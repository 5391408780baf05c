"""The training pictures as scaled latents, computed once and kept in memory.

Shapes: latents [N, 8, 16, 16], mean 0 and spread 1 over the training pictures.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from train.bases.emoji import VENDORS, Emoji, load_rgba, on_white
from train.bases.resume import load_checkpoint
from train.bases.vae import LATENT_NOISE, build_vae


@dataclass(frozen=True, kw_only=True, slots=True)
class Latents:
    """Means of all pictures' latents, and the autoencoder's own noise on them."""

    means: torch.Tensor
    noise: float

    def draw(self, rows: torch.Tensor) -> torch.Tensor:
        """Samples the latents of some pictures, as `latent_dist.sample()` would."""
        means = self.means[rows]
        return means + self.noise * torch.randn_like(means)


def load_vae(checkpoint: Path) -> AutoencoderKL:
    """Builds the trained autoencoder, frozen."""
    state = load_checkpoint(checkpoint)
    if state is None:
        raise SystemExit(f"no autoencoder checkpoint at {checkpoint}; run train.bases.vae first")
    vae = build_vae()
    vae.load_state_dict(state["model"])
    return vae.eval().requires_grad_(False)


@torch.no_grad()
def encode_pictures(vae: AutoencoderKL, data: Path, emoji: list[Emoji]) -> Latents:
    """Encodes every vendor's pictures, vendor after vendor, in the emoji's order."""
    means = []
    for vendor in VENDORS:
        rgb = torch.from_numpy(on_white(load_rgba(data, vendor, emoji))).permute(0, 3, 1, 2)
        for part in rgb.split(64):
            means.append(vae.encode(part.float() / 127.5 - 1).latent_dist.mean)
    return Latents(means=torch.cat(means) * vae.config.scaling_factor, noise=LATENT_NOISE)
