"""What a segmentation base is fed: a picture squeezed whole to one size, in the values its processor gives.

Training, judging and serving go through here, so that a model meets the same pixels in all of them.
Shapes: B pictures, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor

from hubctl.errors import InputError
from hubctl.families import FALLBACK_PX

_FILES = ("preprocessor_config.json", "processor_config.json")
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_SIDE_PX = 8
"""Of the pictures by which a processor is measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PictureInput:
    """How one base takes its pictures."""

    size_px: tuple[int, int]
    """Height and width."""
    resample: Image.Resampling
    mean: torch.Tensor
    """Of each channel of a picture in 0..1, [3, 1, 1]; 0 where the base takes them as they are."""
    std: torch.Tensor
    flips: bool
    """Whether it takes blue first."""

    def squeeze(self, picture: Image.Image, size_px: tuple[int, int] | None = None) -> Any:
        """All of the picture in the base's size, or another: [H, W, 3] in bytes.

        By aspect ratio, as some processors do it, a small file of 1 x 4000 pixels would become a huge one.
        """
        height, width = size_px or self.size_px
        return np.asarray(picture.resize((width, height), self.resample))

    def normalise(self, pictures: torch.Tensor) -> torch.Tensor:
        """What the base is fed for pictures in 0..1, [B, 3, H, W]."""
        pictures = pictures.flip(1) if self.flips else pictures
        return (pictures - self.mean) / self.std


def picture_input(folder: Path) -> PictureInput:
    """How the base in `folder` takes its pictures; as ImageNet's models do where it does not say.

    What becomes of a colour is measured, since processors differ in which of their settings they heed.

    Raises:
        InputError: its image processor cannot be loaded, or does not work.
    """
    if not any((folder / name).is_file() for name in _FILES):
        return _imagenet()
    try:
        processor: Any = AutoImageProcessor.from_pretrained(
            folder, backend="pil", local_files_only=True, do_resize=False, do_center_crop=False, do_pad=False
        )
        black, white, red = (_fed(processor, color) for color in ((0, 0, 0), (255, 255, 255), (255, 0, 0)))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"the image processor in {folder / _FILES[0]} does not work: {error}",
            hint="take the file from where the base comes from",
        ) from error
    std = 1 / (white - black)
    moved = (red - black).abs()
    resample = processor.resample
    return PictureInput(
        size_px=_size(processor.size),
        resample=Image.Resampling.BILINEAR if resample is None else Image.Resampling(int(resample)),
        mean=_as_said(-black * std, processor.image_mean),
        std=_as_said(std, processor.image_std),
        flips=bool(moved[2] > moved[0]),
    )


def _imagenet() -> PictureInput:
    mean, std = (torch.tensor(values)[:, None, None] for values in _IMAGENET)
    return PictureInput(
        size_px=(FALLBACK_PX,) * 2, resample=Image.Resampling.BILINEAR, mean=mean, std=std, flips=False
    )


def _fed(processor: Any, color: Sequence[int]) -> torch.Tensor:
    """The values [3] that a picture of one colour becomes."""
    picture = np.full((_SIDE_PX, _SIDE_PX, 3), color, np.uint8)
    pixels = processor(images=picture, input_data_format="channels_last", return_tensors="pt")["pixel_values"]
    values: torch.Tensor = pixels[0, :, 0, 0].float()
    return values


def _as_said(measured: torch.Tensor, said: Any) -> torch.Tensor:
    """[3, 1, 1]: the number that the file says, where it is the measured one but for rounding."""
    told = measured if said is None else torch.tensor(said, dtype=torch.float32).expand(3)
    return (told if torch.allclose(told, measured, atol=1e-4) else measured)[:, None, None]


def _size(size: Any) -> tuple[int, int]:
    """Height and width; a shortest edge alone means a square."""
    if size.height and size.width:
        return size.height, size.width
    return (size.shortest_edge or FALLBACK_PX,) * 2
