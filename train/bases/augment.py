"""Pictures for the autoencoder beyond the emoji themselves: lines, moves, recolouring.

Shapes: pictures are float [B, 3, H, W] in -1..1, white is 1.
"""

from __future__ import annotations

import math
import random

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw


def edge_drawings(pictures: torch.Tensor) -> torch.Tensor:
    """Turns pictures into black outlines on white, about two pixels wide."""
    grey = pictures.mean(1, keepdim=True)
    rise = F.max_pool2d(grey, 2, 1) + F.max_pool2d(-grey, 2, 1)
    edges = F.pad((rise * 1.6).clamp(0, 2), (0, 1, 0, 1))
    return (1 - edges).expand(-1, 3, -1, -1)


def stroke_drawings(count: int, size_px: int, seed: int) -> np.ndarray:
    """Draws random black strokes on white, uint8 [count, size, size, 3]."""
    rng = random.Random(seed)
    return np.stack([_strokes(rng, size_px) for _ in range(count)])


def _strokes(rng: random.Random, size_px: int) -> np.ndarray:
    zoom = 4
    side = size_px * zoom
    canvas = Image.new("RGB", (side, side), "white")
    draw = ImageDraw.Draw(canvas)
    for _ in range(rng.randint(2, 8)):
        width = int(zoom * rng.uniform(1.2, 2.6))
        ink = "black" if rng.random() < 0.85 else tuple(rng.randrange(256) for _ in "rgb")
        box = sorted(rng.uniform(0, side) for _ in "xx") + sorted(rng.uniform(0, side) for _ in "yy")
        corners = (box[0], box[2], box[1] + width, box[3] + width)
        shape = rng.randrange(5)
        if shape == 0:
            draw.ellipse(corners, outline=ink, width=width)
        elif shape == 1:
            start = rng.uniform(0, 360)
            draw.arc(corners, start, start + rng.uniform(40, 300), fill=ink, width=width)
        elif shape == 2:
            draw.rounded_rectangle(corners, rng.uniform(0, 30), outline=ink, width=width)
        elif shape == 3:
            points = [(rng.uniform(0, side), rng.uniform(0, side)) for _ in range(rng.randint(2, 5))]
            draw.line(points, fill=ink, width=width, joint="curve")
        else:
            radius = rng.uniform(1, 4) * zoom
            x, y = rng.uniform(0, side), rng.uniform(0, side)
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=ink)
    return np.asarray(canvas.resize((size_px, size_px), Image.Resampling.BOX))


def move(pictures: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Shifts, mirrors, scales and slightly turns each picture; white comes in at the sides."""
    count = len(pictures)

    def uniform(low: float, high: float) -> torch.Tensor:
        return torch.rand(count, generator=generator) * (high - low) + low

    scale = torch.exp(uniform(-0.5, 0.35))
    mirror = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    angle = uniform(-0.35, 0.35) * math.pi * (uniform(0, 1) < 0.5)
    rows = torch.stack(
        [
            torch.stack([scale * mirror * angle.cos(), -scale * angle.sin(), uniform(-0.4, 0.4)], 1),
            torch.stack([scale * mirror * angle.sin(), scale * angle.cos(), uniform(-0.4, 0.4)], 1),
        ],
        1,
    )
    grid = F.affine_grid(rows, list(pictures.shape), align_corners=False)
    moved = F.grid_sample(1 - pictures, grid, align_corners=False)
    return 1 - moved


def recolour(pictures: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Per picture: mixed channels, grey, inverted, or another brightness and contrast."""
    out = pictures.clone()
    for picture in out:
        draw = torch.rand(4, generator=generator).tolist()
        if draw[0] < 0.35:
            picture.copy_(picture[torch.randperm(3, generator=generator)])
        elif draw[0] < 0.45:
            picture.copy_(picture.mean(0, keepdim=True).expand(3, -1, -1))
        if draw[1] < 0.1:
            picture.neg_()
        if draw[2] < 0.3:
            picture.mul_(0.5 + draw[3] * 0.5).add_((draw[3] - 0.5) * 0.4)
    return out.clamp_(-1, 1)
