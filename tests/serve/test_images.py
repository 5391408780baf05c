from __future__ import annotations

import base64
import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from hubctl.errors import InputError
from serve import images

PICTURE = np.arange(6 * 4 * 3, dtype=np.uint8).reshape(6, 4, 3) * 3


def file_of(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def read(data: bytes, max_pixels: int = 1000) -> images.Pixels:
    return images.decode(data, max_pixels=max_pixels, param="image")


def test_png_keeps_every_pixel() -> None:
    assert (read(images.encode(PICTURE)) == PICTURE).all()


@pytest.mark.parametrize(("kind", "magic"), [("png", b"\x89PNG"), ("jpeg", b"\xff\xd8"), ("webp", b"RIFF")])
def test_formats(kind: images.ImageFormat, magic: bytes) -> None:
    data = images.encode(PICTURE, kind)
    assert data.startswith(magic)
    assert np.abs(read(data).astype(int) - PICTURE).max() <= 64
    assert images.MEDIA_TYPES[kind] == f"image/{kind}"


def test_transparency_lies_over_white() -> None:
    image = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    assert (read(file_of(image)) == 255).all()
    palette = Image.new("P", (2, 2), 0)
    assert (read(file_of(palette, transparency=0)) == 255).all()


def test_grey_and_16_bit_become_rgb() -> None:
    assert read(file_of(Image.new("L", (3, 2), 9))).shape == (2, 3, 3)
    assert read(file_of(Image.new("1", (3, 2), 1))).max() == 255
    deep = Image.fromarray(np.array([[0, 256, 0x8000, 0xFFFF]], np.uint16))
    assert read(file_of(deep))[0, :, 0].tolist() == [0, 1, 128, 255]
    assert read(file_of(deep, transparency=256))[0, :, 0].tolist() == [0, 255, 128, 255]


def test_turned_photographs_are_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter
    assert read(file_of(Image.new("RGB", (4, 2)), "JPEG", exif=exif)).shape == (4, 2, 3)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GIF89a" + bytes(20),
        b"not an image",
        images.encode(PICTURE)[:40],
        images.encode(PICTURE, "jpeg")[:200],
        images.encode(PICTURE).replace(b"IDAT", b"IDAX"),
    ],
)
def test_broken_or_foreign_files_are_refused(data: bytes) -> None:
    with pytest.raises(InputError, match="image is not a readable PNG, JPEG or WebP"):
        read(data)


def bomb(width: int, height: int) -> bytes:
    """A PNG that promises so many pixels and has none."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    head = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return head + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))


@pytest.mark.parametrize("side_px", [32, 10000, 60000])
def test_size_is_judged_before_pixels_are_unpacked(side_px: int) -> None:
    with pytest.raises(InputError, match="pixels; this server takes 1,000"):
        read(bomb(side_px, side_px))


@pytest.mark.parametrize(("width", "height"), [(1, 16_000_000), (16_000_000, 1), (32_769, 2)])
def test_strips_are_refused_however_few_pixels_they_have(width: int, height: int) -> None:
    with pytest.raises(InputError, match=f"{width} x {height} pixels; no side may have more than 32,768"):
        read(bomb(width, height), max_pixels=1 << 24)


def test_a_long_side_is_fine() -> None:
    strip = np.zeros((1, images.MAX_SIDE_PX, 3), dtype=np.uint8)
    assert read(images.encode(strip), max_pixels=1 << 24).shape == strip.shape


def test_base64_with_and_without_a_data_url() -> None:
    text = base64.b64encode(b"\x00\x01").decode()
    assert images.from_base64(text, param="image") == b"\x00\x01"
    assert images.from_base64(f"data:image/png;base64,{text}", param="image") == b"\x00\x01"
    with pytest.raises(InputError, match="image is not base64") as caught:
        images.from_base64("*" + text, param="image")
    assert caught.value.param == "image"


def test_palette_is_the_usual_one() -> None:
    assert [images.hex_color(i) for i in (0, 1, 2, 3, 8)] == [
        "#000000", "#800000", "#008000", "#808000", "#400000",
    ]  # fmt: skip
    assert len({images.color_of(i) for i in range(256)}) == 256


def test_mask_and_overlay() -> None:
    labels = np.array([[0, 1], [1, 2]], dtype=np.uint8)
    assert images.mask_of(labels, 1).tolist() == [[0, 255], [255, 0]]
    picture = np.full((2, 2, 3), 100, dtype=np.uint8)
    painted = images.overlay(picture, labels, {0: "background", 1: "pet", 2: "border"})
    assert painted[0, 0].tolist() == [100, 100, 100]
    assert painted[0, 1].tolist() == [round(100 * 0.45 + 128 * 0.55), 45, 45]
    assert painted[1, 1].tolist() == [45, round(100 * 0.45 + 128 * 0.55), 45]


def test_an_overlay_of_a_large_image_is_painted_in_bands() -> None:
    """The same as all at once, without all of it in floating point."""
    random = np.random.default_rng(0)
    picture = random.integers(0, 256, (1500, 1000, 3), dtype=np.uint8)
    labels = random.integers(0, 3, (1500, 1000), dtype=np.uint8)
    tracemalloc.start()
    painted = images.overlay(picture, labels, {0: "background", 1: "pet", 2: "border"})
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < picture.nbytes + 16 * labels.size
    alpha = np.where(labels == 0, 0, np.float32(images.OVERLAY_ALPHA))[..., None]
    colors = np.array([images.color_of(i) for i in range(3)], np.float32)[labels]
    assert (painted == np.rint(picture * (1 - alpha) + colors * alpha)).all()
