"""Images from images, with masks and ControlNets: what diffusers alone makes, in whatever company."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hubctl.base_models import locate_base
from hubctl.errors import InputError
from serve.engine.generate import ImageEngine
from serve.engine.requests import Control, ImageRequest, LoraUse
from tests.serve import reference, tiny, tiny_pipelines

TOLERANCE = reference.TOLERANCE


@dataclass(frozen=True)
class World:
    """A tiny base with a ControlNet, its engine and an adapter."""

    base: Path
    controlnet: Path | None
    engine: ImageEngine
    use: LoraUse

    def truth(self, request: ImageRequest) -> np.ndarray:
        return reference.images(self.base, request, self.controlnet)


@pytest.fixture(scope="module", params=["sd1", "sdxl", "sd3", "flux", "qwen-image", "z-image"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp(request.param)
    base = tiny_pipelines.write_pipeline(folder / "base", request.param)
    located = locate_base(str(base))
    controlnet = (
        tiny_pipelines.write_controlnet(folder / "lines", base) if located.family.controlnet else None
    )
    adapter = tiny.write_lora(folder / "adapter", base, seed=1, rank=4, text_targets=tiny.TEXT)
    config = tiny.engine_config(total_rows=64, controlnets={"lines": str(controlnet)} if controlnet else {})
    engine = ImageEngine(located, config, tiny.fetch)
    yield World(base, controlnet, engine, LoraUse(ref=tiny.pinned(adapter)))
    engine.close()


def _picture(seed: int, *shape: int) -> np.ndarray:
    """Soft blobs: noise of 4 x 4, made larger."""
    rough = np.random.default_rng(seed).integers(0, 256, (4, 4, *shape[2:]), dtype=np.uint8)
    return rough.repeat(shape[0] // 4, 0).repeat(shape[1] // 4, 1)


IMAGE, LINES = _picture(1, 32, 32, 3), _picture(2, 32, 32, 3)
MASK = (_picture(3, 32, 32) > 99).astype(np.uint8) * 255
ASK = ImageRequest(prompt="red apple", seed=3, num_inference_steps=4)
CONTROL = Control(name="lines", image=LINES, scale=0.8)


def _requests(use: LoraUse) -> list[ImageRequest]:
    return [
        replace(ASK, width=32, height=32),
        replace(ASK, image=IMAGE, strength=0.6, loras=(use,)),
        replace(ASK, prompt="cat", image=LINES, num_inference_steps=6, num_images=2, guidance_scale=1.0),
        replace(ASK, image=IMAGE, mask=MASK, strength=0.9),
        replace(ASK, prompt="dog", image=LINES, mask=MASK, strength=0.5, seed=4, loras=(use,)),
        replace(ASK, prompt="owl", control=CONTROL, num_inference_steps=3, num_images=2),
        replace(ASK, image=IMAGE, control=replace(CONTROL, scale=0.5), strength=0.5, loras=(use,)),
        replace(ASK, image=IMAGE, mask=MASK, control=CONTROL, strength=0.8, guidance_scale=2.0),
    ]


def test_each_request_alone_and_all_at_once(world: World) -> None:
    requests = [r for r in _requests(world.use) if world.controlnet or not r.control]
    reference.compare(world.engine, requests, [world.truth(request) for request in requests])
    owner = world.engine.owner
    denoiser = world.engine._core.base.family.denoiser
    assert all(owner.forwards[name] < owner.calls[name] for name in (denoiser, "vae"))


def test_an_image_of_each_seed(world: World) -> None:
    """Image i of a request is that of `seed + i`, with pictures too."""
    for request in (replace(ASK, image=IMAGE), replace(ASK, image=IMAGE, mask=MASK)):
        first, second = world.engine.generate_floats(replace(request, num_images=2))
        assert np.abs(first - world.engine.generate_floats(request)[0]).max() <= TOLERANCE
        later = replace(request, seed=request.seed + 1)
        assert np.abs(second - world.engine.generate_floats(later)[0]).max() <= TOLERANCE


def test_flux2_takes_an_image_as_a_reference(tmp_path: Path) -> None:
    """Not to be drawn over: its pipeline knows no strength."""
    base = tiny_pipelines.write_pipeline(tmp_path, "flux2-klein")
    engine = ImageEngine(locate_base(str(base)), tiny.engine_config(), tiny.fetch)
    request = replace(ASK, image=_picture(1, 64, 64, 3), num_images=2)
    try:
        together = engine.generate_floats(request)
        assert np.abs(together - reference.images(base, request)).max() <= TOLERANCE
        with pytest.raises(InputError, match="takes no strength"):
            engine.generate(replace(request, strength=0.5))
        with pytest.raises(InputError, match="cannot do inpainting"):
            engine.generate(replace(request, mask=MASK))
        for shape, message in (((32, 64), "none below 64"), ((64, 576), "sides up to 8 to 1")):
            with pytest.raises(InputError, match=message) as caught:
                engine.generate(replace(request, image=_picture(1, *shape, 3)))
            assert caught.value.param == "image"
            # What is refused here, diffusers refuses; what it takes is taken.
            with pytest.raises(ValueError, match=r"too small|too extreme"):
                reference.images(base, replace(request, image=_picture(1, *shape, 3)))
        engine.generate(replace(request, image=_picture(1, 64, 512, 3), num_inference_steps=1))
    finally:
        engine.close()


def test_sdxl_in_half_precision_keeps_its_autoencoder_in_float32(tmp_path: Path) -> None:
    """It overflows in float16: diffusers brings it to float32 for each call, a shared one stays there."""
    base = tiny_pipelines.write_pipeline(tmp_path, "sdxl")
    engine = ImageEngine(locate_base(str(base)), tiny.engine_config(dtype="float16"), tiny.fetch)
    try:
        for request in (replace(ASK, width=32, height=32), replace(ASK, image=IMAGE, mask=MASK)):
            difference = engine.generate_floats(request) - reference.images(base, request)
            assert np.abs(difference).max() <= 0.01
        assert engine._template.vae.dtype == torch.float32
        assert engine._template.unet.dtype == torch.float16
    finally:
        engine.close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"image": IMAGE.astype(np.float32)},
            r"image is float32 \(32, 32, 3\), not uint8 \(height, width, 3\)",
        ),
        ({"image": IMAGE[..., 0]}, r"image is uint8 \(32, 32\)"),
        ({"image": IMAGE[..., :2]}, r"image is uint8 \(32, 32, 2\)"),
        ({"image": IMAGE[0, 0]}, r"image is uint8 \(3,\)"),
        ({"image": IMAGE[:30]}, "height 30 is not a multiple of 8"),
        ({"image": IMAGE[:0]}, "height 0 is out of range"),
        ({"image": IMAGE, "width": 40}, "width is 40, the image's 32"),
        ({"mask": MASK}, "a mask was given without an image"),
        ({"image": IMAGE, "mask": IMAGE}, r"mask is uint8 \(32, 32, 3\), not uint8 \(height, width\)"),
        ({"image": IMAGE, "mask": MASK[:16]}, "mask has 32x16 pixels, the image 32x32"),
        ({"strength": 0.5}, "strength was given without an image"),
        ({"image": IMAGE, "strength": 1.5}, "strength 1.5 is out of range"),
        ({"image": IMAGE, "strength": float("nan")}, "strength nan is out of range"),
        ({"image": IMAGE, "strength": 0.2}, "strength 0.2 of 4 steps is less than one step"),
        ({"control": replace(CONTROL, name="depth")}, "has no ControlNet 'depth'"),
    ],
)
def test_fields_that_do_not_fit(world: World, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        world.engine.generate(replace(ASK, **changes))


def test_controls_that_do_not_fit(world: World) -> None:
    with pytest.raises(InputError) as caught:
        world.engine.generate(replace(ASK, control=replace(CONTROL, name="depth")))
    assert caught.value.hint == ("choose one of: lines" if world.controlnet else "leave the control out")
    if world.controlnet:
        for control, message in [
            (replace(CONTROL, scale=float("nan")), "control.scale nan is out of range"),
            (replace(CONTROL, image=MASK), "control is uint8"),
        ]:
            with pytest.raises(InputError, match=message):
                world.engine.generate(replace(ASK, control=control))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("none", "is no ControlNet's folder"),
        ("sd3", "a sd3 base takes none"),
        ("sdxl", "another cross_attention_dim"),
    ],
)
def test_controlnets_that_do_not_fit_are_refused_at_the_start(
    tmp_path: Path, kind: str, message: str
) -> None:
    base = tiny_pipelines.write_pipeline(tmp_path / "base", "sd3" if kind == "sd3" else "sdxl")
    other = tmp_path / "lines"
    if kind != "none":
        tiny_pipelines.write_controlnet(other, tiny_pipelines.write_pipeline(tmp_path / "sd1", "sd1"))
    config = tiny.engine_config(controlnets={"lines": str(other)})
    with pytest.raises(InputError, match=message):
        ImageEngine(locate_base(str(base)), config, tiny.fetch)
