"""Judging a text-to-image adapter: likeness to references, adherence to prompts, and what else it changes.

Every picture is drawn by the stock pipeline, with the same noise for base and adapter.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from hubctl.base_models import BaseModel, FetchBase
from hubctl.errors import InputError
from hubctl.modeling.new_tokens import load_new_tokens
from hubctl.refs import AdapterRef
from train.base_size import native_px
from train.dataset import CaptionedImage, open_image
from train.evaluation.config import EvalConfig, Judgement, has_own_judge
from train.evaluation.embedders import Embedder, change, open_embedder
from train.events import Event, Judged, Warned
from train.style_rate import JUDGE
from train.tasks.denoisers import DENOISERS
from train.tasks.diffusion import SAMPLE_STEPS, open_pipeline
from train.tasks.grid import draw_grid

SCALES = (0.0, 0.5, 1.0)
"""Strengths of the adapter; 0 is the base."""
UNRELATED = (
    "red apple", "house", "a dog", "a woman with long hair", "pot of food", "mountain", "automobile",
    "alarm clock",
)  # fmt: skip
"""What hardly any adapter is about: how these change is drift."""
GUIDANCE = 5.0
"""Strength of guidance for bases that are served but not trained."""
SHOWN = 6
BATCH = 4


def judge_pictures(
    config: EvalConfig,
    base: BaseModel,
    references: Sequence[CaptionedImage],
    folder: Path,
    fetch_base: FetchBase | None,
) -> Generator[Event, None, Judgement]:
    """Figures at the scales 0, 0.5 and 1, and `scales.png` and `drift.png` in `folder`.

    Raises:
        InputError: the embedder is not there, or is none.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    embedder = _embedder(config, base, device, fetch_base)
    if embedder is None:
        yield Warned(
            message="nothing here can judge likeness, so only changed pixels are counted: give a CLIP or a "
            "DINOv2, e.g. --embedder openai/clip-vit-base-patch32"
        )
    artist = _Artist(base, config, device)
    prompts = [item.caption for item in references]
    tasks = [(scale, prompts) for scale in SCALES] + [(scale, UNRELATED) for scale in (0.0, 1.0)]
    total, drawn = sum(len(asked) for _, asked in tasks), []
    done = 0
    for scale, asked in tasks:
        pictures: list[Image.Image] = []
        for start in range(0, len(asked), BATCH):
            pictures += artist.draw(asked[start : start + BATCH], scale=scale, seed=config.seed + start)
            done += len(asked[start : start + BATCH])
            yield Judged(done=done, total=total)
        drawn.append(pictures)
    truth = [ImageOps.fit(open_image(item.path), (artist.side_px, artist.side_px)) for item in references]
    *by_scale, before, after = drawn
    rows: list[dict[str, float]] = []
    for scale, pictures in zip(SCALES, by_scale, strict=True):
        figures = embedder.figures(pictures, prompts, truth) if embedder else {}
        rows.append({"scale": scale, **figures, "changed_pixels": _changed(by_scale[0], pictures)})
    metrics: dict[str, float] = {"drift_pixels": _changed(before, after)}
    if embedder:
        metrics["drift"] = change(embedder.features(before), embedder.features(after))
    for name in (name for name in rows[0] if name not in ("scale", "changed_pixels")):
        metrics |= {name: rows[-1][name], f"base_{name}": rows[0][name]}
    _draw_scales(prompts, truth, by_scale, folder / "scales.png")
    draw_grid(UNRELATED, ("base", "adapter"), list(zip(before, after, strict=True))).save(
        folder / "drift.png"
    )
    return Judgement(metrics=metrics, rows=[{**row} for row in rows])


class _Artist:
    """The stock pipeline of a base, with the adapter loaded by diffusers."""

    def __init__(self, base: BaseModel, config: EvalConfig, device: torch.device) -> None:
        known = DENOISERS.get(base.family.name)
        self._guidance = known.guidance if known else GUIDANCE
        self.side_px = native_px(base.path)
        half = getattr(torch, base.family.half) if device.type == "cuda" else torch.float32
        self._pipeline = open_pipeline(base, {"default": half, "vae": torch.float32}, device)
        self._pipeline.load_lora_weights(str(config.adapter), adapter_name="judged")
        self._new_words: Path | None = config.adapter

    def draw(self, prompts: Sequence[str], *, scale: float, seed: int) -> list[Image.Image]:
        """A picture for each prompt; picture i from `seed` + i."""
        if scale:
            if self._new_words:  # not before: the base is to read what it knows
                load_new_tokens(self._pipeline, self._new_words)
                self._new_words = None
            self._pipeline.enable_lora()
            self._pipeline.set_adapters(["judged"], [scale])
        else:
            self._pipeline.disable_lora()
        pictures: list[Image.Image] = self._pipeline(
            list(prompts),
            height=self.side_px,
            width=self.side_px,
            num_inference_steps=SAMPLE_STEPS,
            guidance_scale=self._guidance,
            generator=[torch.Generator().manual_seed(seed + place) for place in range(len(prompts))],
        ).images
        return pictures


def _embedder(
    config: EvalConfig, base: BaseModel, device: torch.device, fetch_base: FetchBase | None
) -> Embedder | None:
    name = config.embedder
    if name is None:
        return open_embedder(JUDGE, JUDGE.name, device) if has_own_judge(base.id) else None
    if Path(name).is_dir():
        return open_embedder(Path(name), name, device)
    if fetch_base is None:
        raise InputError(f"there is no folder {name}", hint="give a CLIP or a DINOv2: a folder or OWNER/NAME")
    return open_embedder(fetch_base(AdapterRef.parse(name))[0], name, device)


def _changed(before: Sequence[Image.Image], after: Sequence[Image.Image]) -> float:
    """Mean absolute difference of the pixels, 0 to 1."""
    pairs = zip(before, after, strict=True)
    return float(
        np.mean([np.abs(np.asarray(a, np.float32) - np.asarray(b, np.float32)) for a, b in pairs]) / 255
    )


def _draw_scales(
    prompts: Sequence[str],
    truth: Sequence[Image.Image],
    by_scale: Sequence[Sequence[Image.Image]],
    path: Path,
) -> None:
    shown = range(0, len(prompts), max(1, len(prompts) // SHOWN))[:SHOWN]
    table = [[truth[place], *(pictures[place] for pictures in by_scale)] for place in shown]
    columns = ["reference", *(f"scale {scale:g}" if scale else "base" for scale in SCALES)]
    draw_grid([prompts[place] for place in shown], columns, table).save(path)
