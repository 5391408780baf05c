"""Judging a segmentation adapter: figures from one confusion matrix, and overlays."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from PIL import Image

from hubctl.adapter.layout import read_layout
from hubctl.base_models import BaseModel
from hubctl.errors import DataError
from hubctl.modeling.loading import load_segmenter
from hubctl.modeling.picture_input import picture_input
from train.adapt import find_head
from train.confusion import confusion, labels_at
from train.dataset import open_image
from train.evaluation.config import EvalConfig, Judgement
from train.events import Event, Judged
from train.masks import IGNORED, MaskData
from train.scores import renumbered, scores
from train.tasks.grid import draw_grid
from train.tasks.segmentation import load_pictures, named_figures, overlay

SHOWN = 8
"""Pictures in the grid of overlays."""
WRONG = (230, 30, 30)


def judge_masks(
    config: EvalConfig, base: BaseModel, data: MaskData, names: Mapping[int, str], folder: Path
) -> Generator[Event, None, Judgement]:
    """mIoU, Dice and pixel accuracy at the masks' own resolution, and `overlays.png` in `folder`.

    `names` are the classes that the adapter knows, by number; those of the masks are found in them by name.

    Raises:
        DataError: the masks have a class that the adapter does not know, or others in number than it has.
    """
    items = data.test or data.train
    places = _places(data.labels, names, config.data)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model: Any = load_segmenter(base.path, names)
    _require_classes(model, names, config)
    model = PeftModel.from_pretrained(model, str(config.adapter))
    model.to(device).eval()
    fed = picture_input(base.path)

    def predict(paths: Sequence[Path]) -> torch.Tensor:
        pictures = fed.normalise(load_pictures(paths, fed).float() / 255)
        logits: torch.Tensor = model(pixel_values=pictures.to(device)).logits
        return logits

    matrix = [[0] * len(names) for _ in data.labels]
    for done, item in enumerate(items, start=1):
        counted = confusion(predict, [item], true_classes=len(data.labels), predicted_classes=len(names))
        matrix = [[a + b for a, b in zip(*rows, strict=True)] for rows in zip(matrix, counted, strict=True)]
        yield Judged(done=done, total=len(items))
    found = scores(renumbered(matrix, places, len(names)))
    shown = items[:: max(1, len(items) // SHOWN)][:SHOWN]
    rows = []
    for item in shown:
        picture, truth = open_image(item.path), item.classes()
        true_numbers = np.array([*places, *[IGNORED] * (256 - len(places))], np.uint8)[truth]
        with torch.no_grad():
            drawn = labels_at(predict([item.path])[0].float().cpu(), truth.shape).numpy().astype(np.uint8)
        rows.append(
            [
                picture,
                overlay(picture, true_numbers),
                overlay(picture, drawn),
                _wrong(picture, true_numbers, drawn),
            ]
        )
    columns = ("picture", "truth", "adapter", "wrong in red")
    draw_grid([item.path.stem for item in shown], columns, rows).save(folder / "overlays.png")
    metrics = {
        "miou": found.mean_iou,
        "mean_dice": found.mean_dice,
        "pixel_accuracy": found.pixel_accuracy,
        **named_figures("iou", names, found.iou),
        **named_figures("dice", names, found.dice),
    }
    pixels = [sum(row) for row in renumbered(matrix, places, len(names))]
    return Judgement(
        # A class that occurs nowhere has no figure, and JSON has no NaN.
        metrics={name: value for name, value in metrics.items() if value == value},
        rows=[
            {
                "class": names[n],
                "iou": _figure(found.iou[n]),
                "dice": _figure(found.dice[n]),
                "pixels": pixels[n],
            }
            for n in range(len(names))
        ],
    )


def _places(truth: Mapping[int, str], names: Mapping[int, str], data: Path) -> list[int]:
    """The adapter's number for each class of the masks."""
    numbers = {name: number for number, name in names.items()}
    unknown = [name for name in truth.values() if name not in numbers]
    if unknown:
        raise DataError(
            f"the masks in {data} have the class '{unknown[0]}', which the adapter does not know; it knows "
            + ", ".join(names.values()),
            hint="name the classes in labels.json as the adapter does; null leaves one out",
        )
    return [numbers[truth[number]] for number in range(len(truth))]


def _require_classes(model: Any, names: Mapping[int, str], config: EvalConfig) -> None:
    """Raise `DataError` unless the adapter's last layer, where it has one, is for as many classes."""
    last = f"{find_head(model).classifier}.weight"
    for tensor in read_layout(config.adapter).heads:
        if tensor.name == last and tensor.shape[0] != len(names):
            raise DataError(
                f"the adapter has {tensor.shape[0]} classes, the masks in {config.data} name {len(names)}",
                hint="judge it on masks of all of its classes, in labels.json in its order",
            )


def _figure(value: float) -> float | None:
    return value if value == value else None


def _wrong(picture: Image.Image, truth: Any, drawn: Any) -> Image.Image:
    pixels = np.asarray(picture.convert("L").convert("RGB")) // 2 + 96
    pixels[(truth != drawn) & (truth != IGNORED)] = WRONG
    return Image.fromarray(pixels)
