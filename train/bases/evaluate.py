"""Measures emoji-64 with the judge, and draws its sample grid and loss curve."""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import matplotlib
import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from train.bases.captions import caption
from train.bases.emoji import VENDORS, Emoji, load_emoji
from train.bases.resume import load_checkpoint
from train.judge import Judge, load_judge

# fmt: off
PROMPTS = (
    "red apple", "dog face", "house", "banana", "car", "guitar", "cat face", "fire engine", "pizza",
    "tree", "fish", "sun", "crown", "umbrella", "rocket", "hamburger",
)
# fmt: on
STEPS, GUIDANCE, SEED = 25, 1.5, 0
_BATCH = 16


def load_pipeline(folder: Path) -> StableDiffusionPipeline:
    """Loads a pipeline folder for the CPU, in float32, silent."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline: StableDiffusionPipeline, prompts: list[str], seed: int = SEED) -> np.ndarray:
    """Draws one picture a prompt, uint8 [N, 64, 64, 3]; each has its own seed."""
    pictures = []
    for start in range(0, len(prompts), _BATCH):
        part = prompts[start : start + _BATCH]
        generators = [torch.Generator().manual_seed(seed + start + i) for i in range(len(part))]
        out = pipeline(
            part,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            generator=generators,
            output_type="np",
        ).images
        pictures.append(np.rint(out * 255).astype(np.uint8))
    return np.concatenate(pictures)


def sheet(pictures: np.ndarray, columns: int, zoom: int = 1) -> Image.Image:
    """Lays pictures [N, H, W, 3] out in rows; a last row that is not full is left out."""
    rows = len(pictures) // columns
    side = pictures.shape[1]
    grid = pictures[: rows * columns].reshape(rows, columns, side, side, 3)
    flat = np.ascontiguousarray(grid.transpose(0, 2, 1, 3, 4).reshape(rows * side, columns * side, 3))
    image = Image.fromarray(flat)
    return image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST)


def hit_rates(
    pipeline: StableDiffusionPipeline, judge: Judge, emoji: list[Emoji], count: int
) -> dict[str, float]:
    """Draws some of these emoji in both styles and asks the judge what it sees."""
    picked = random.Random(0).sample(emoji, min(count, len(emoji)))
    rows = [(e, style) for e in picked for style in VENDORS]
    styles, subgroups = judge.predict(draw(pipeline, [caption(e, style) for e, style in rows]))
    return {
        "pictures": len(rows),
        "style": round(float(np.mean([s == r[1] for s, r in zip(styles, rows, strict=True)])), 3),
        "subgroup": round(
            float(np.mean([g == r[0].subgroup for g, r in zip(subgroups, rows, strict=True)])), 3
        ),
    }


def loss_curve(losses: list[tuple[int, float]], target: Path) -> None:
    """Draws the training loss against the step."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5, 3), dpi=80)
    axes.plot([step for step, _ in losses], [loss for _, loss in losses])
    axes.set_xlabel("step")
    axes.set_ylabel("training loss")
    figure.tight_layout()
    figure.savefig(target)
    pyplot.close(figure)


def main() -> None:
    """Writes samples.png, and with a judge also judge.json and loss.png."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--base", type=Path, required=True, help="emoji-64 folder")
    parser.add_argument("--judge", type=Path, help="emoji-64-judge folder")
    parser.add_argument("--checkpoint", type=Path, help="text-to-image checkpoint, for its losses")
    parser.add_argument("--count", type=int, default=75, help="captions to draw for a hit rate")
    args = parser.parse_args()
    pipeline = load_pipeline(args.base)
    prompts = [f"{name}, {style} style" for style in VENDORS for name in PROMPTS]
    sheet(draw(pipeline, prompts), columns=8, zoom=2).save(args.base / "samples.png", optimize=True)
    if args.checkpoint and (state := load_checkpoint(args.checkpoint)):
        loss_curve(state["losses"], args.base / "loss.png")
    if args.judge:
        judge, emoji = load_judge(args.judge), load_emoji(args.data)
        figures = {
            "inference": {"steps": STEPS, "guidance": GUIDANCE, "seed": SEED},
            "training_captions": hit_rates(pipeline, judge, [e for e in emoji if not e.held_out], args.count),
            "held_out_captions": hit_rates(pipeline, judge, [e for e in emoji if e.held_out], args.count),
        }
        print(figures)
        (args.base / "judge.json").write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
