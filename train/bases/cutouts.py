"""Scenes to learn segmentation from: one or two emoji pasted on a drawn background.

Shapes: cut-outs [N, 4, 64, 64] with colour times alpha; scenes [B, 3, 128, 128] in 0..1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from train.bases.backgrounds import draw_background
from train.bases.emoji import VENDORS, load_emoji, load_rgba, on_white

SIDE_PX = 128
BACKGROUNDS = 1200


@dataclass(frozen=True, kw_only=True, slots=True)
class CutOuts:
    """Cut-outs and backgrounds, uint8, from which scenes are drawn without end."""

    rgba: torch.Tensor
    backgrounds: torch.Tensor

    def scenes(self, count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Draws scenes [count, 3, 128, 128] and masks [count, 128, 128] of 0 and 1."""
        picked = torch.randint(len(self.backgrounds), (count,), generator=generator)
        picture = self.backgrounds[picked].float() / 255
        picture = torch.where(_chance(count, 0.5, generator), picture, picture.flip(-1))
        mask = torch.zeros(count, 1, SIDE_PX, SIDE_PX)
        for present in (torch.ones(count, 1, 1, 1), _chance(count, 0.4, generator).float()):
            layer = self._layer(count, generator) * present
            alpha = layer[:, 3:]
            picture = layer[:, :3] + picture * (1 - alpha)
            mask = torch.maximum(mask, alpha)
        light = torch.rand(count, 1, 1, 1, generator=generator) * 0.6 + 0.7
        return (picture * light).clamp(0, 1), (mask[:, 0] > 0.5).long()

    def _layer(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """One cut-out a scene, scaled, mirrored, turned and moved."""
        picked = torch.randint(len(self.rgba), (count,), generator=generator)
        cut_out = self.rgba[picked].float() / 255
        cut_out = torch.cat([cut_out[:, :3] * cut_out[:, 3:], cut_out[:, 3:]], 1)
        swap = torch.rand(count, 1, 1, 1, generator=generator) < 0.3
        cut_out = torch.where(swap, cut_out[:, [2, 0, 1, 3]], cut_out)

        def uniform(low: float, high: float) -> torch.Tensor:
            return torch.rand(count, generator=generator) * (high - low) + low

        zoom = 1 / uniform(0.3, 0.95)
        mirror = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
        angle = uniform(-0.15, 0.15) * math.pi
        room = (zoom - 1) + 0.2
        rows = torch.stack(
            [
                torch.stack([zoom * mirror * angle.cos(), -zoom * angle.sin(), uniform(-1, 1) * room], 1),
                torch.stack([zoom * mirror * angle.sin(), zoom * angle.cos(), uniform(-1, 1) * room], 1),
            ],
            1,
        )
        grid = F.affine_grid(rows, [count, 4, SIDE_PX, SIDE_PX], align_corners=False)
        return F.grid_sample(cut_out, grid, align_corners=False)


def load_cut_outs(data: Path) -> tuple[CutOuts, CutOuts]:
    """Reads both vendors' cut-outs, split into training and held-out emoji."""
    emoji = load_emoji(data)
    rgba = np.concatenate([load_rgba(data, vendor, emoji) for vendor in VENDORS])
    held_out = torch.tensor([e.held_out for e in emoji] * len(VENDORS))
    tiles, rng = on_white(rgba[::5]), np.random.default_rng(0)
    drawn = np.stack([draw_background(SIDE_PX, rng, tiles) for _ in range(BACKGROUNDS)])
    backgrounds = torch.from_numpy(drawn).permute(0, 3, 1, 2).contiguous()
    cut_outs = torch.from_numpy(rgba).permute(0, 3, 1, 2).contiguous()
    return (
        CutOuts(rgba=cut_outs[~held_out], backgrounds=backgrounds[100:]),
        CutOuts(rgba=cut_outs[held_out], backgrounds=backgrounds[:100]),
    )


def _chance(count: int, share: float, generator: torch.Generator) -> torch.Tensor:
    return torch.rand(count, 1, 1, 1, generator=generator) < share
