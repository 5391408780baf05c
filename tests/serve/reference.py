"""What diffusers and peft alone make of a request: the truth that the engine is held against."""

from __future__ import annotations

import json
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from peft import PeftModel
from transformers import AutoImageProcessor

from serve.engine.requests import ImageRequest, SegmentRequest
from serve.engine.schedulers import SCHEDULERS
from tests.serve import tiny


def images(base: Path, request: ImageRequest) -> np.ndarray:
    """Images as a diffusers user makes them: (n, height, width, 3), float32 in 0 to 1."""
    pipeline = _pipeline(base)
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
        "guidance_scale": request.guidance_scale,
    }
    made: np.ndarray = pipeline(
        prompt=request.prompt,
        num_images_per_prompt=request.num_images,
        generator=[torch.Generator("cpu").manual_seed(request.seed + i) for i in range(request.num_images)],
        output_type="np",
        **{name: value for name, value in given.items() if value is not None},
    ).images
    return made


@cache
def _pipeline(base: Path) -> Any:
    return tiny.load_pipeline(base)


def _own_scheduler(base: Path) -> Any:
    config = json.loads((base / "scheduler" / "scheduler_config.json").read_text())
    return getattr(diffusers, config["_class_name"]).from_config(config)


def logits(base: Path, request: SegmentRequest, labels: dict[int, str] | None) -> torch.Tensor:
    """Logits (C, h, w) as a peft user gets them."""
    model = tiny.load_segformer(base, labels)
    if request.adapter:
        model = PeftModel.from_pretrained(model, tiny.fetch(request.adapter.ref)).eval()
    processor = AutoImageProcessor.from_pretrained(base, backend="pil")
    pixels = processor(images=request.image, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        found: torch.Tensor = model(pixel_values=pixels).logits[0]
    return found
