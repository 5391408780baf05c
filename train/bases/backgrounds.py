"""Procedural backgrounds to paste cut-outs on.

Shapes: a background is uint8 [size, size, 3]; `rng` decides everything.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter


def draw_background(size: int, rng: np.random.Generator, tiles: np.ndarray) -> np.ndarray:
    """Draws one of eight kinds of background.

    Args:
        size: side in pixels.
        rng: where the choices come from.
        tiles: uint8 [N, 64, 64, 3], small pictures for the blurred mosaics.
    """
    kind = int(rng.integers(len(_KINDS) + 1))
    picture = _mosaic(size, rng, tiles) if kind == len(_KINDS) else _KINDS[kind](size, rng)
    return np.clip(picture, 0, 255).astype(np.uint8)


def _colour(rng: np.random.Generator) -> np.ndarray:
    pale = rng.random() < 0.4
    return rng.uniform(150 if pale else 0, 255, 3)


def _blend(share: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mixes two random colours by a map of shares 0..1, [H, W] -> [H, W, 3]."""
    first, second = _colour(rng), _colour(rng)
    return share[..., None] * first + (1 - share[..., None]) * second


def _solid(size: int, rng: np.random.Generator) -> np.ndarray:
    return np.broadcast_to(_colour(rng), (size, size, 3)).copy()


def _ramp(size: int, rng: np.random.Generator) -> np.ndarray:
    """Values rising along a random direction, 0..1."""
    y, x = np.mgrid[0:size, 0:size] / size - 0.5
    angle = rng.uniform(0, 2 * np.pi)
    return x * np.cos(angle) + y * np.sin(angle) + 0.5


def _gradient(size: int, rng: np.random.Generator) -> np.ndarray:
    return _blend(np.clip(_ramp(size, rng), 0, 1), rng)


def _stripes(size: int, rng: np.random.Generator) -> np.ndarray:
    wave = np.sin(_ramp(size, rng) * rng.uniform(8, 60))
    return _blend((wave > rng.uniform(-0.6, 0.6)).astype(float), rng)


def _checks(size: int, rng: np.random.Generator) -> np.ndarray:
    period = rng.uniform(8, 50)
    waves = np.sin(_ramp(size, rng) * period) * np.sin(_ramp(size, rng) * period)
    return _blend((waves > 0).astype(float), rng)


def _noise(size: int, rng: np.random.Generator) -> np.ndarray:
    return _colour(rng) + rng.normal(0, rng.uniform(8, 60), (size, size, 3))


def _plasma(size: int, rng: np.random.Generator) -> np.ndarray:
    """Sums smooth noise of several sizes: clouds, moss, marble."""
    share = np.zeros((size, size))
    for octave in range(int(rng.integers(2, 6))):
        cells = rng.random((2 ** (octave + 1) + 1,) * 2).astype(np.float32)
        layer = Image.fromarray(cells).resize((size, size), Image.Resampling.BICUBIC)
        share += np.asarray(layer) * 0.6**octave
    low, high = share.min(), share.max()
    return _blend((share - low) / (high - low), rng)


def _discs(size: int, rng: np.random.Generator) -> np.ndarray:
    picture = _gradient(size, rng)
    y, x = np.mgrid[0:size, 0:size]
    for _ in range(int(rng.integers(4, 20))):
        centre = rng.uniform(0, size, 2)
        radius = rng.uniform(0.02, 0.15) * size
        picture[np.hypot(x - centre[0], y - centre[1]) < radius] = _colour(rng)
    return picture


def _mosaic(size: int, rng: np.random.Generator, tiles: np.ndarray) -> np.ndarray:
    """A blurred patchwork of small pictures."""
    picked = tiles[rng.integers(len(tiles), size=9)].reshape(3, 3, 64, 64, 3)
    sheet = Image.fromarray(picked.transpose(0, 2, 1, 3, 4).reshape(192, 192, 3))
    left, top = (int(v) for v in rng.integers(0, 60, 2))
    part = sheet.crop((left, top, left + 128, top + 128)).resize((size, size))
    return np.asarray(part.filter(ImageFilter.GaussianBlur(float(rng.uniform(2, 6)))), np.float64)


_KINDS: tuple[Callable[[int, np.random.Generator], np.ndarray], ...] = (
    _solid,
    _gradient,
    _stripes,
    _checks,
    _noise,
    _plasma,
    _discs,
)
