"""The trainer's first sample, and what diffusers alone draws where it was drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

TOLERANCE = 2.5 / 255
"""The sample was rounded, and computed from prompts that were encoded apart."""


def first_sample(folder: Path) -> np.ndarray:
    """The picture in an adapter's folder, (height, width, 3), 0 to 1."""
    return np.asarray(Image.open(folder / "samples" / "sample-1.png").convert("RGB")) / 255


def drawn(pipeline: Any, prompt: str, kind: str) -> np.ndarray:
    """The same by `pipeline`, a tiny one of 32 px, from the seed and with the settings of the trainer."""
    pipeline.set_progress_bar_config(disable=True)
    picture: np.ndarray = pipeline(
        prompt,
        height=32,
        width=32,
        num_inference_steps=20,
        guidance_scale=3.5 if kind == "flux" else 5.0,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).images[0]
    return picture


def differ(one: np.ndarray, other: np.ndarray) -> float:
    """The largest difference."""
    return float(np.abs(one - other).max())
