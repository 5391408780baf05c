"""An opened picture as 8-bit RGB: transparency on white, deep greys scaled; for training and server alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

_WHITE_16 = 0xFFFF


def in_rgb(image: Image.Image) -> Image.Image:
    """The picture in RGB, what is transparent on white.

    Raises:
        ValueError: its pixels are floating point numbers, or whole ones above 16 bits: nobody says which of
            them is white.
    """
    from PIL import Image

    if image.mode == "F" or image.mode[0] == "I":
        return _in_8_bits(image).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _in_8_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits a pixel in 8: Pillow's own conversion makes all above 255 white."""
    import numpy as np
    from PIL import Image

    if image.mode == "F":
        raise ValueError("its pixels are floating point numbers")
    values = np.asarray(image)
    if values.min(initial=0) < 0 or values.max(initial=0) > _WHITE_16:
        raise ValueError("its pixels have more than 16 bits")
    # What Pillow opens as I may have 8 bits only: then it is grey as it is.
    deep = image.mode != "I" or values.max(initial=0) > 0xFF
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        values = np.where(values == clear, _WHITE_16 if deep else 0xFF, values)
    return Image.fromarray((values >> 8 if deep else values).astype(np.uint8))
