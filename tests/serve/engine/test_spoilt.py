from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from PIL import Image
from torch.nn import functional
from transformers import CLIPConfig, CLIPImageProcessor

from hubctl.base_models import locate_base
from hubctl.errors import AdapterError, HubctlError, InputError
from serve.engine.config import EngineConfig
from serve.engine.generate import ImageEngine
from serve.engine.requests import ImageRequest, LoraUse
from serve.engine.spoilt import refuse_spoilt
from tests.serve import reference, tiny, tiny_pipelines

APPLE = ImageRequest(prompt="apple", seed=1, num_inference_steps=2)
PEAR = ImageRequest(prompt="pear", seed=2, num_inference_steps=2)


def change(base: Path, part: str, edit: Callable[[Any], None]) -> Path:
    """Edit one component of a saved pipeline in place."""
    pipeline = tiny.load_pipeline(base)
    with torch.no_grad():
        edit(getattr(pipeline, part))
    pipeline.save_pretrained(base)
    return base


def attempts(base: Path, config: EngineConfig, *requests: ImageRequest) -> list[Any]:
    """What becomes of each of the requests, all at once: its images, or its error."""
    engine = ImageEngine(locate_base(str(base)), config, tiny.fetch)

    def attempt(request: ImageRequest) -> object:
        try:
            return engine.generate_floats(request)
        except HubctlError as error:
            return error

    try:
        with ThreadPoolExecutor(len(requests)) as pool:
            return list(pool.map(attempt, requests))
    finally:
        engine.close()


def test_an_adapter_that_drives_the_latents_to_nan(tmp_path: Path) -> None:
    base = tiny_pipelines.write_pipeline(tmp_path / "base", "sd1")
    huge = tiny.pinned(tiny.write_lora(tmp_path / "huge", base, seed=8, strength=1e18))
    request = ImageRequest(prompt="apple", seed=1, num_inference_steps=2, loras=(LoraUse(ref=huge),))
    error, images = attempts(base, tiny.engine_config(total_rows=8), request, PEAR)
    assert isinstance(error, AdapterError)
    assert "NaN or infinity before it was decoded: the adapters drove it there" in str(error)
    assert np.abs(images - reference.images(base, PEAR)).max() <= reference.TOLERANCE


def test_a_base_whose_latents_are_nan_without_any_adapter(tmp_path: Path) -> None:
    base = tiny_pipelines.write_pipeline(tmp_path, "sd1")
    change(base, "unet", lambda unet: unet.conv_out.weight.mul_(3e38))
    (error,) = attempts(base, tiny.engine_config(total_rows=2), APPLE)
    assert not isinstance(error, AdapterError)
    assert "NaN or infinity before it was decoded" in str(error)


def overflowing(vae: Any) -> None:
    """Just within float16's 65504, and what the weights add goes beyond."""
    vae.decoder.conv_out.bias.fill_(-65500.0)
    vae.decoder.conv_out.weight.mul_(1000.0)


def test_an_autoencoder_that_overflows_in_half_precision(tmp_path: Path) -> None:
    """It gives minus infinity, which diffusers clamps to a black image without a word."""
    base = change(tiny_pipelines.write_pipeline(tmp_path, "sd1"), "vae", overflowing)
    (error,) = attempts(base, tiny.engine_config(total_rows=2, dtype="float16"), APPLE)
    assert "autoencoder overflowed in float16" in str(error)
    assert "float32" in str(error.hint)


def test_an_image_that_is_wholly_black_for_another_reason(tmp_path: Path) -> None:
    base = tiny_pipelines.write_pipeline(tmp_path, "sd1")
    change(base, "vae", lambda vae: vae.decoder.conv_out.bias.fill_(-1000.0))
    (error,) = attempts(base, tiny.engine_config(total_rows=2), APPLE)
    assert not reference.images(base, APPLE).any()  # diffusers gives it to whoever asked
    assert str(error) == "the image came out wholly black"


def write_checker(base: Path, refuse: np.ndarray, keep: np.ndarray) -> None:
    """Give a pipeline a safety checker that refuses images like `refuse`, and not those like `keep`."""
    torch.manual_seed(3)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**sizes, "image_size": 32, "patch_size": 8, "initializer_range": 1.0}
    config = CLIPConfig(text_config=sizes, vision_config=vision, projection_dim=8)
    checker = StableDiffusionSafetyChecker(config).eval()
    size = {"height": 32, "width": 32}
    processor = CLIPImageProcessor(size=size, crop_size=size)
    seen = [Image.fromarray((image * 255).round().astype(np.uint8)) for image in (refuse, keep)]
    with torch.no_grad():
        for parameter in checker.parameters():
            parameter.normal_()
        pooled = checker.vision_model(processor(seen, return_tensors="pt").pixel_values)[1]
        bad, good = checker.visual_projection(pooled)
        similar = functional.cosine_similarity(bad, good, dim=0)
        assert similar < 0.98
        checker.concept_embeds[:] = bad
        checker.concept_embeds_weights[:] = (1 + similar) / 2
        checker.special_care_embeds_weights[:] = 2.0  # beyond any cosine
    pipeline = tiny.load_pipeline(base)
    pipeline.register_modules(safety_checker=checker, feature_extractor=processor)
    pipeline.save_pretrained(base)


def test_what_the_safety_checker_refuses(tmp_path: Path) -> None:
    plain = tiny_pipelines.write_pipeline(tmp_path / "plain", "sd1")
    base = tiny_pipelines.write_pipeline(tmp_path / "base", "sd1")
    truths = [reference.images(plain, request) for request in (APPLE, PEAR)]
    write_checker(base, refuse=truths[0][0], keep=truths[1][0])
    error, images = attempts(base, tiny.engine_config(total_rows=2), APPLE, PEAR)
    assert not reference.images(base, APPLE).any()  # diffusers alone gives a black image
    assert isinstance(error, InputError)
    assert (str(error), error.param) == ("the base's safety checker refused the image", "prompt")
    assert np.abs(images - truths[1]).max() <= reference.TOLERANCE


def test_one_of_several_images() -> None:
    images = np.full((3, 2, 2, 3), 0.5)
    refuse_spoilt(images, None)
    refuse_spoilt(images, [False, False, False])
    with pytest.raises(InputError, match="refused image 2 of 3"):
        refuse_spoilt(images, [False, True, False])
    images[2] = 0.001  # below half a step of 8 bits
    with pytest.raises(HubctlError, match="image 3 of 3 came out wholly black"):
        refuse_spoilt(images, None)
