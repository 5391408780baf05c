"""What diffusers and peft alone make of a request: the truth that the engine is held against."""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Container, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from peft import PeftModel
from PIL import Image
from transformers import AutoImageProcessor

from hubctl.modeling.loading import load_segmenter
from serve.engine.generate import ImageEngine
from serve.engine.requests import ImageRequest, SegmentRequest
from serve.engine.schedulers import SCHEDULERS
from tests.device import DEVICE
from tests.serve import tiny

TOLERANCE = 1e-4


def images(base: Path, request: ImageRequest, controlnet: Path | None = None) -> np.ndarray:
    """Images as a diffusers user makes them, one by one: (n, height, width, 3), float32 in 0 to 1."""
    task = "text" if request.image is None else "image" if request.mask is None else "inpaint"
    pipeline = _pipeline(base, task, controlnet if request.control else None)
    pipeline.scheduler = _own_scheduler(base)
    if request.scheduler:
        name, changes = SCHEDULERS[request.scheduler]
        pipeline.scheduler = getattr(diffusers, name).from_config(pipeline.scheduler.config, **changes)
    names = [f"adapter_{i}" for i in range(len(request.loras))]
    pipeline.unload_lora_weights()
    for name, use in zip(names, request.loras, strict=True):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")
            pipeline.load_lora_weights(tiny.fetch(use.ref), adapter_name=name)
    if names:
        pipeline.set_adapters(names, [use.scale for use in request.loras])
    given = {
        "negative_prompt": request.negative_prompt,
        "width": request.width,
        "height": request.height,
        "num_inference_steps": request.num_inference_steps,
        "true_cfg_scale" if "Qwen" in type(pipeline).__name__ else "guidance_scale": request.guidance_scale,
        "strength": request.strength,
        **_pictures(request, inspect.signature(pipeline.__call__).parameters),
    }
    made = [
        pipeline(
            prompt=request.prompt,
            generator=torch.Generator("cpu").manual_seed(request.seed + i),
            output_type="np",
            **{name: value for name, value in given.items() if value is not None},
        ).images
        for i in range(request.num_images)
    ]
    return np.concatenate(made)


def _pictures(request: ImageRequest, takes: Container[str]) -> dict[str, Any]:
    given: dict[str, Any] = {}
    if request.control:
        given["controlnet_conditioning_scale"] = request.control.scale
        name = "control_image" if "control_image" in takes else "image"
        given[name] = Image.fromarray(request.control.image)
        given["width"], given["height"] = given[name].size
    if request.image is not None:
        given["image"] = Image.fromarray(request.image)
        if "width" in takes:
            given["width"], given["height"] = given["image"].size
    if request.mask is not None:
        given["mask_image"] = Image.fromarray(request.mask)
    return given


@cache
def _pipeline(base: Path, task: str, controlnet: Path | None) -> Any:
    loader = {
        "text": diffusers.AutoPipelineForText2Image,
        "image": diffusers.AutoPipelineForImage2Image,
        "inpaint": diffusers.AutoPipelineForInpainting,
    }[task]
    if not controlnet:
        return tiny.load_pipeline(base, loader).to(DEVICE)
    model = diffusers.AutoModel.from_pretrained(str(controlnet), dtype=torch.float32)
    return tiny.load_pipeline(base, loader, controlnet=model).to(DEVICE)


def _own_scheduler(base: Path) -> Any:
    config = json.loads((base / "scheduler" / "scheduler_config.json").read_text())
    return getattr(diffusers, config["_class_name"]).from_config(config)


def compare(engine: ImageEngine, requests: Sequence[ImageRequest], truths: Sequence[np.ndarray]) -> None:
    """Assert that the engine makes `truths` (float32, 0 to 1) of `requests`, one by one and all at once.

    The owner's counts are those of the requests at once, afterwards.
    """
    alone = [engine.generate_floats(request) for request in requests]
    engine.owner.forwards.clear()
    engine.owner.calls.clear()
    with ThreadPoolExecutor(len(requests)) as pool:
        together = list(pool.map(engine.generate_floats, requests))
    for request, want, *made in zip(requests, truths, alone, together, strict=True):
        for images in made:
            assert np.abs(images - want).max() <= TOLERANCE, request
            assert np.abs((images * 255).round() - (want * 255).round()).max() <= 1, request


def processed(base: Path, image: np.ndarray) -> torch.Tensor:
    """What transformers' own processor makes of the whole image, squeezed into a square: (1, 3, H, W)."""
    processor = AutoImageProcessor.from_pretrained(base, backend="pil", do_center_crop=False, do_pad=False)
    side_px = processor.size.height or processor.size.shortest_edge
    pixels: torch.Tensor = processor(
        images=image,
        size={"height": side_px, "width": side_px},
        input_data_format="channels_last",
        return_tensors="pt",
    )["pixel_values"]
    return pixels


def logits(base: Path, request: SegmentRequest, labels: dict[int, str] | None) -> torch.Tensor:
    """Logits (C, h, w) as a peft user gets them for the whole image."""
    model = load_segmenter(base, labels).eval().to(DEVICE)
    if request.adapter:
        model = PeftModel.from_pretrained(model, tiny.fetch(request.adapter.ref)).eval()
    pixels = processed(base, request.image)
    with torch.no_grad():
        found: torch.Tensor = model(pixel_values=pixels.to(DEVICE)).logits[0].cpu()
    return found
