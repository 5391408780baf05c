"""Claims of three articles, checked on the sample data: `python -m train.bench.claims segmentation|subject`.

segmentation [STEPS [SEED]]: an adapter beside full fine-tuning of the same base, and the transformer that
https://github.com/dhruvbird/ml-notebooks trains from scratch on Oxford-IIIT Pet; same images, steps, batch.
subject: five pictures of one animal into a folder, to train DreamBooth on.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import nn

import hubctl
from hubctl.adapter.header import read_header
from hubctl.base_models import locate_base
from hubctl.modeling.loading import load_segmenter
from hubctl.modeling.picture_input import PictureInput, picture_input
from train.adapt import training_mode
from train.config import TrainConfig
from train.confusion import confusion
from train.dataset import open_image
from train.masks import MaskData, read_masks
from train.plan import Plan, batches, learning_rate_factor
from train.prepare import plan_for
from train.run import train
from train.scores import scores
from train.tasks.segmentation import augment, load_pictures, segmentation_loss

ANIMALS = Path(hubctl.__file__).parent / "demo" / "data" / "fluent-animals"
BASE = "emoji-64-seg"
FULL_RATES = (1e-4, 5e-4, 2e-3)
"""Full fine-tuning gets the best of these on the test pictures: more than the adapter is given."""
SCRATCH_RATE = 4e-4
SCRATCH_PX = 128


class PatchTransformer(nn.Module):
    """The articles' transformer: patches of 16 px, twelve pre-norm blocks of eight heads, then pixels."""

    def __init__(self, classes: int, side_px: int = SCRATCH_PX, patch: int = 16, width: int = 768) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.unfold = nn.Unfold(patch, stride=patch)
        self.embed = nn.Linear(3 * patch * patch, width)
        self.positions = nn.Parameter(torch.randn(1, (side_px // patch) ** 2, width))
        block = nn.TransformerEncoderLayer(
            width, 8, 4 * width, dropout=0.2, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, 12, enable_nested_tensor=False)
        self.pixels = nn.Linear(width, classes * patch * patch)
        self.fold = nn.Fold(side_px, patch, stride=patch)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Pictures [B, 3, H, W] to logits [B, classes, H, W]."""
        patches = self.unfold(self.norm(pictures)).transpose(1, 2)
        hidden = self.blocks(self.embed(patches) + self.positions)
        logits: torch.Tensor = self.fold(self.pixels(hidden).transpose(1, 2))
        return logits


def compare(steps: int, seed: int) -> list[dict[str, Any]]:
    """A row for each way to learn the task; from scratch also for as long as the adapter took."""
    data, base = read_masks(ANIMALS), locate_base(BASE)
    fed = picture_input(base.path)
    with tempfile.TemporaryDirectory() as scratch:
        config = TrainConfig(
            task="segmentation", base=BASE, data=ANIMALS, output=Path(scratch) / "adapter", steps=steps,
            seed=seed, hold_out=0, sample_every=0, checkpoint_every=0,
        )  # fmt: skip
        plan = plan_for(config, base)
        started_s = time.perf_counter()
        for _ in train(config):
            pass
        manifest = json.loads((config.output / "hubctl.json").read_text(encoding="utf-8"))
        header = read_header(next(config.output.glob("*.safetensors")))
    rows = [
        {
            "way": "adapter",
            "parameters": sum(math.prod(tensor.shape) for tensor in header.tensors.values()),
            "miou": manifest["metrics"]["miou"],
            "pixel_accuracy": manifest["metrics"]["pixel_accuracy"],
            "seconds": time.perf_counter() - started_s,
        }
    ]
    full = []
    for rate in FULL_RATES:
        torch.manual_seed(seed)
        model: Any = load_segmenter(base.path, data.labels)

        def logits(pictures: torch.Tensor, model: Any = model) -> torch.Tensor:
            return model(pixel_values=fed.normalise(pictures)).logits

        way = f"full fine-tuning, rate {rate:g}"
        full.append(_learn(way, model, logits, data, plan, rate, fed, plan.resolution_px, seed))
    rows.append(max(full, key=lambda row: row["miou"]))
    whole = _from_scratch(data, plan, fed, seed)
    in_time = max(1, round(plan.steps * rows[0]["seconds"] / whole["seconds"]))
    return [*rows, whole, _from_scratch(data, dataclasses.replace(plan, steps=in_time), fed, seed)]


def _from_scratch(data: MaskData, plan: Plan, fed: PictureInput, seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    fresh = PatchTransformer(len(data.labels))
    way = f"transformer from scratch, {plan.steps} steps"
    return _learn(way, fresh, fresh, data, plan, SCRATCH_RATE, fed, SCRATCH_PX, seed)


def _learn(
    way: str,
    model: nn.Module,
    logits: Callable[[torch.Tensor], torch.Tensor],
    data: MaskData,
    plan: Plan,
    rate: float,
    fed: PictureInput,
    side_px: int,
    seed: int,
) -> dict[str, Any]:
    """Train every parameter on what the adapter is trained on, in the same order, and judge it alike."""
    started_s = time.perf_counter()
    pictures = load_pictures([item.path for item in data.train], fed, (side_px, side_px))
    masks = torch.stack([_mask(item.classes(), side_px) for item in data.train])
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    generator = torch.Generator().manual_seed(seed)
    for step, indices in enumerate(batches(len(data.train), plan.batch_size, plan.steps, seed)):
        for group in optimizer.param_groups:
            group["lr"] = rate * learning_rate_factor(step, plan.steps, plan.warmup_steps)
        training_mode(model)
        chosen = list(indices)
        seen, truth = augment(pictures[chosen].float() / 255, masks[chosen], generator)
        loss = segmentation_loss(logits(seen), truth)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()

    @torch.no_grad()
    def predict(paths: Sequence[Path]) -> torch.Tensor:
        return logits(load_pictures(paths, fed, (side_px, side_px)).float() / 255)

    count = len(data.labels)
    found = scores(confusion(predict, data.test, true_classes=count, predicted_classes=count))
    return {
        "way": way,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "miou": found.mean_iou,
        "pixel_accuracy": found.pixel_accuracy,
        "seconds": time.perf_counter() - started_s,
    }


def _mask(classes: Any, side_px: int) -> torch.Tensor:
    import numpy as np

    small = Image.fromarray(classes).resize((side_px, side_px), Image.Resampling.NEAREST)
    return torch.from_numpy(np.array(small))


def write_subject(folder: Path) -> None:
    """Five pictures of one animal, cut out of its own and put before the backgrounds of others."""
    data = read_masks(ANIMALS)
    pet = next(number for number, name in data.labels.items() if name == "pet")
    animal = data.test[0]
    picture, cut = open_image(animal.path), Image.fromarray((animal.classes() == pet).astype("uint8") * 255)
    folder.mkdir(parents=True)
    for number, other in enumerate(data.train[:5]):
        scene = open_image(other.path).resize(picture.size)
        # A corner of the scene, without its own animal, as the background.
        scene = scene.crop((0, 0, 24, 24)).resize(picture.size, Image.Resampling.BICUBIC)
        parts = [ImageOps.mirror(part) if number % 2 else part for part in (picture, cut)]
        scene.paste(parts[0], (4 * number - 8, 0), parts[1])
        scene.save(folder / f"{animal.path.stem}-{number}.png")


def main() -> None:
    """Print the rows as JSON, or write the pictures."""
    match sys.argv[1:]:
        case ["segmentation", *numbers]:
            steps, seed = [*map(int, numbers), *(300, 0)[len(numbers) :]]
            json.dump(compare(steps, seed), sys.stdout, indent=2)
        case ["subject", folder]:
            write_subject(Path(folder))
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main()
