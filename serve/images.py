"""Pixels to files and back: PNG, JPEG and WebP, masks, label images, overlays. No torch."""

from __future__ import annotations

import base64
import binascii
import io
import warnings
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from hubctl.errors import InputError
from hubctl.images import in_rgb

Pixels = NDArray[np.uint8]
"""H x W x 3 RGB, or H x W for labels."""

ImageFormat = Literal["png", "jpeg", "webp"]
MEDIA_TYPES: dict[ImageFormat, str] = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
_QUALITY = 95  # of the lossy formats

MAX_SIDE_PX = 1 << 15
"""Of an image sent in. A strip of few pixels can be longer: what resizes it would make a huge image of it."""
_BAND_PIXELS = 1 << 18
"""Painted at once: in floating point the whole of a large image would take forty times its labels."""
OVERLAY_ALPHA = 0.55
"""How opaque a class's colour lies on the image."""
UNPAINTED = frozenset({"background"})
"""Labels that an overlay leaves as they are."""


def encode(pixels: Pixels, kind: ImageFormat = "png") -> bytes:
    """The file for an image: `pixels` is H x W x 3, or H x W for one byte a pixel."""
    out = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if kind == "png":
        image.save(out, "PNG", compress_level=4)
    else:
        image.save(out, kind.upper(), quality=_QUALITY)
    return out.getvalue()


def to_base64(data: bytes) -> str:
    """Base64 in ASCII, as JSON carries it."""
    return base64.b64encode(data).decode("ascii")


def from_base64(text: str, *, param: str) -> bytes:
    """The bytes in `text`, which may be a `data:` URL.

    Raises:
        InputError: it is not base64; `param` names the field.
    """
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InputError(f"{param} is not base64", param=param) from None


def decode(data: bytes, *, max_pixels: int, param: str) -> Pixels:
    """Read a PNG, JPEG or WebP file into H x W x 3 RGB, upright, transparency over white.

    Raises:
        InputError: it is none of these, is broken, has more than `max_pixels`, or a side above `MAX_SIDE_PX`;
            the size is judged before any pixel is unpacked.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `max_pixels` is our own limit
            image: Image.Image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP"))
        width, height = image.size
        if width * height > max_pixels:
            raise InputError(
                f"{param} has {width} x {height} pixels; this server takes {max_pixels:,} in all", param=param
            )
        if max(width, height) > MAX_SIDE_PX:
            raise InputError(
                f"{param} is {width} x {height} pixels; no side may have more than {MAX_SIDE_PX:,}",
                param=param,
            )
        return np.asarray(in_rgb(ImageOps.exif_transpose(image)), dtype=np.uint8)
    except Image.DecompressionBombError:  # Pillow's own, much higher limit
        raise InputError(
            f"{param} has far too many pixels; this server takes {max_pixels:,} in all", param=param
        ) from None
    except (OSError, SyntaxError, ValueError):
        # Pillow's word for a broken file depends on the format and on where it breaks.
        raise InputError(f"{param} is not a readable PNG, JPEG or WebP image", param=param) from None


def color_of(label_id: int) -> tuple[int, int, int]:
    """The colour of class `label_id`: the Pascal VOC palette, in which 0 is black and neighbours differ."""
    red = green = blue = 0
    for bit in range(8):
        red |= (label_id & 1) << (7 - bit)
        green |= (label_id >> 1 & 1) << (7 - bit)
        blue |= (label_id >> 2 & 1) << (7 - bit)
        label_id >>= 3
    return red, green, blue


def hex_color(label_id: int) -> str:
    """`#rrggbb` of class `label_id`."""
    return "#{:02x}{:02x}{:02x}".format(*color_of(label_id))


def mask_of(labels: Pixels, label_id: int) -> Pixels:
    """255 where `labels` (H x W) is `label_id`, 0 elsewhere."""
    return np.where(labels == label_id, 255, 0).astype(np.uint8)


def overlay(image: Pixels, labels: Pixels, id2label: dict[int, str]) -> Pixels:
    """`image` (H x W x 3) with each class of `labels` (H x W) painted on it, background left alone."""
    colors = np.zeros((256, 3), dtype=np.float32)
    alphas = np.zeros((256, 1), dtype=np.float32)
    for label_id, label in id2label.items():
        colors[label_id] = color_of(label_id)
        alphas[label_id] = 0.0 if label.lower() in UNPAINTED else OVERLAY_ALPHA
    kept, paint = 1 - alphas, colors * alphas
    painted = np.empty_like(image)
    rows = max(1, _BAND_PIXELS // image.shape[1])
    for top in range(0, len(image), rows):
        band = slice(top, top + rows)
        painted[band] = np.rint(image[band] * kept[labels[band]] + paint[labels[band]])
    return painted
