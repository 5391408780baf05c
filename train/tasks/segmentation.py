"""segmentation: a class for each pixel, learnt from images with masks.

The base's attention and its head take LoRA, the head's last layer is trained whole; all of it lies in one
adapter that peft loads.
Shapes: B images, N classes, H x W pixels (the plan's resolution), h x w logits.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from PIL import Image
from torch import nn
from torch.nn import functional

from hubctl.modeling.loading import load_segmenter
from hubctl.modeling.picture_input import PictureInput, picture_input
from train.adapt import find_head, lora_config, require_useful_rank, resolve_targets, trained_in_float32
from train.confusion import confusion, labels_at
from train.dataset import open_image
from train.fused import fuse_lora
from train.masks import IGNORED, MaskData, MaskedImage
from train.scores import Scores, best_mapping, mapped, scores
from train.tasks.grid import draw_looks
from train.tasks.task import Evaluation, Setup
from train.verify import require_same_answer, require_same_tensors

SAMPLES = 4
SCALE, SHIFT, JITTER = 0.25, 0.125, 0.2
"""Augmentation: zoom by up to a quarter, shift by an eighth of the width, contrast and light by a fifth."""

_COLORS = np.array(
    [(230, 75, 60), (255, 200, 40), (60, 120, 220), (70, 180, 90), (160, 80, 200), (40, 190, 190)]
)


class Segmentation:
    """A transformers segmentation model: LoRA, and a last layer for the data's classes."""

    def __init__(self, setup: Setup, data: MaskData) -> None:
        self._setup, self._data = setup, data
        self.prompts: Sequence[str] = ()
        self.buckets: Sequence[Hashable] | None = None
        self.images, self.held_out_images = len(data.train), len(data.test)
        self.names: Sequence[str] = [item.path.name for item in data.train]
        # A new head starts at random; the seed makes it the same each time.
        torch.manual_seed(setup.config.seed)
        model: Any = load_segmenter(setup.base.path, data.labels)
        head = find_head(model)
        chosen = resolve_targets(
            model,
            setup.config.targets,
            default_targets=setup.base.family.default_targets,
            heads=[head.classifier],
        )
        targets = sorted({*chosen, *head.before})
        plan = setup.plan
        require_useful_rank(model, targets, plan.rank)
        config = lora_config(setup.config, plan, targets=targets, heads=[head.classifier])
        config.base_model_name_or_path = setup.base.id
        config.revision = setup.base.commit
        self.module: nn.Module = get_peft_model(model.to(setup.frozen_dtype), config)
        self.module.to(setup.device)
        trained_in_float32(self.module)
        fuse_lora(self.module)
        self._input = picture_input(setup.base.path)
        # Bytes: in float32 thousands of large images would fill the memory of most machines.
        self._pictures = self._load([item.path for item in data.train])
        self._masks = torch.stack([self._load_mask(item) for item in data.train])

    def loss(self, module: nn.Module, indices: Sequence[int], generator: torch.Generator) -> torch.Tensor:
        """`segmentation_loss` of the augmented pictures."""
        chosen = list(indices)
        pictures, masks = augment(self._pictures[chosen].float() / 255, self._masks[chosen], generator)
        return segmentation_loss(module(pixel_values=self._normalised(pictures)).logits, masks)

    def watch(self) -> tuple[float, float] | None:
        """One minus the mean IoU, on the first training images with counted pixels and on the watched."""
        watched = self._data.watched
        if not watched:
            return None
        trained = [item for item in self._data.train if item.mask not in self._data.blank][: len(watched)]
        return 1 - self._scores(trained).mean_iou, 1 - self._scores(watched).mean_iou

    @torch.no_grad()
    def sample(self, step: int, folder: Path) -> Path:
        """Redraw the grid: picture, truth, and one column for each look at the adapter."""
        items = self._judged()[:: max(1, len(self._judged()) // SAMPLES)][:SAMPLES]
        pictures = [open_image(item.path) for item in items]
        truth = [overlay(picture, item.classes()) for picture, item in zip(pictures, items, strict=True)]
        logits = self._predict(self.module, [item.path for item in items])
        drawn = [
            overlay(picture, labels_at(scores, picture.size[::-1]).numpy().astype(np.uint8))
            for picture, scores in zip(pictures, logits.float().cpu(), strict=True)
        ]
        for number, picture in enumerate(drawn, start=1):
            picture.save(folder / f"sample-{number}.png")
        names = [item.path.stem for item in items]
        before = [("picture", pictures), ("truth", truth)]
        return draw_looks(folder, step, drawn, names, untrained="new head", before=before)

    def evaluate(self) -> Evaluation:
        """Adapter and base on the held-out images, or on the training images where none are held out."""
        items, labels = self._judged(), self._data.labels
        adapter = self._scores(items)
        metrics = {
            "miou": adapter.mean_iou,
            "pixel_accuracy": adapter.pixel_accuracy,
            **named_figures("iou", labels, adapter.iou),
        }
        # A backbone alone has no classes of its own to judge.
        base, note = ({}, "") if self._setup.base.family.headless else self._judge_base(items)
        return Evaluation(
            split="test" if self._data.test else "train",
            # A class that occurs nowhere has no figure, and JSON has no NaN.
            metrics={name: value for name, value in (metrics | base).items() if value == value},
            note=note,
        )

    def _scores(self, items: Sequence[MaskedImage]) -> Scores:
        count = len(self._data.labels)
        matrix = confusion(
            lambda paths: self._predict(self.module, paths),
            items,
            true_classes=count,
            predicted_classes=count,
        )
        return scores(matrix)

    def _judge_base(self, items: Sequence[MaskedImage]) -> tuple[dict[str, float], str]:
        """The base's own figures, and which of its classes were counted as which."""
        labels = self._data.labels
        model: Any = load_segmenter(self._setup.base.path)
        model.to(self._setup.device)
        matrix = confusion(
            lambda paths: self._predict(model, paths),
            items,
            true_classes=len(labels),
            predicted_classes=model.config.num_labels,
        )
        mapping = best_mapping(matrix)
        base = scores(mapped(matrix, mapping))
        metrics = {
            "base_miou": base.mean_iou,
            "base_pixel_accuracy": base.pixel_accuracy,
            **named_figures("base_iou", labels, base.iou),
        }
        named = ", ".join(
            f"{model.config.id2label[number]} as {labels[true]}" for number, true in enumerate(mapping[:8])
        )
        return metrics, f"The base is judged under the fixed mapping that suits it best: {named}."

    @torch.no_grad()
    def verify(self, folder: Path) -> float:
        """Load the folder with peft alone into a fresh base, which must label a picture alike."""
        setup, paths = self._setup, [self._judged()[0].path]
        trained = self._predict(self.module, paths).float()
        tensors = get_peft_model_state_dict(self.module)
        model: Any = load_segmenter(setup.base.path, self._data.labels, dtype=setup.frozen_dtype)
        loaded = PeftModel.from_pretrained(model.to(setup.device), str(folder))
        require_same_tensors(tensors, get_peft_model_state_dict(loaded))
        return require_same_answer(trained, self._predict(loaded, paths).float(), setup.frozen_dtype)

    def save(self, folder: Path) -> None:
        """Write `adapter_model.safetensors` and `adapter_config.json` as peft does."""
        module: Any = self.module
        # "auto" would ask the Hub about the base's vocabulary; there is none.
        module.save_pretrained(folder, save_embedding_layers=False)
        config = folder / "adapter_config.json"
        settings = json.loads(config.read_text(encoding="utf-8"))
        # peft keeps the targets in a set, whose order differs from run to run.
        settings["target_modules"] = sorted(settings["target_modules"])
        config.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def _judged(self) -> tuple[MaskedImage, ...]:
        return self._data.test or self._data.train

    @torch.no_grad()
    def _predict(self, model: Any, paths: Sequence[Path]) -> torch.Tensor:
        model.eval()
        pictures = self._load(paths).float() / 255
        with self._setup.autocast():  # the head trains, and has float32
            logits: torch.Tensor = model(pixel_values=self._normalised(pictures)).logits
        return logits

    def _load_mask(self, item: MaskedImage) -> torch.Tensor:
        side = (self._setup.plan.resolution_px,) * 2
        mask = Image.fromarray(item.classes()).resize(side, Image.Resampling.NEAREST)
        return torch.from_numpy(np.array(mask))

    def _load(self, paths: Sequence[Path]) -> torch.Tensor:
        return load_pictures(paths, self._input, (self._setup.plan.resolution_px,) * 2)

    def _normalised(self, pictures: torch.Tensor) -> torch.Tensor:
        return self._input.normalise(pictures).to(self._setup.device, self._setup.frozen_dtype)


def segmentation_loss(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Cross entropy plus missing overlap at the masks' size, over all pixels that are not ignored, else zero.

    Cross entropy alone gives a thin class, such as a border, little weight; overlap counts classes alike.
    Logits [B, N, h, w], masks [B, H, W].
    """
    logits = functional.interpolate(
        logits.float(), size=masks.shape[-2:], mode="bilinear", align_corners=False
    )
    masks = masks.to(logits.device).long()
    if not (masks != IGNORED).any():
        return logits.sum() * 0  # a mean over no pixels would be NaN
    entropy = functional.cross_entropy(logits, masks, ignore_index=IGNORED)
    return entropy + overlap_loss(logits, masks)


def overlap_loss(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """One minus the mean Dice overlap of the classes; logits [B, N, H, W], masks [B, H, W]."""
    counted = (masks != IGNORED)[:, None]
    found = logits.softmax(dim=1) * counted
    classes = logits.shape[1]
    truth = functional.one_hot(masks.clamp(max=classes - 1), classes).permute(0, 3, 1, 2) * counted
    both = (found * truth).sum(dim=(0, 2, 3))
    either = (found + truth).sum(dim=(0, 2, 3))
    # A class that is nowhere in the batch has nothing to overlap with.
    present = truth.sum(dim=(0, 2, 3)) > 0
    return 1 - ((2 * both + 1) / (either + 1))[present].mean()


def load_pictures(
    paths: Sequence[Path], fed: PictureInput, size_px: tuple[int, int] | None = None
) -> torch.Tensor:
    """Pictures as uint8 [B, 3, H, W], each squeezed whole into the base's size or another."""
    arrays = [fed.squeeze(open_image(path), size_px) for path in paths]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)


def augment(
    pictures: torch.Tensor, masks: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Flip, zoom, shift and relight each picture at random; its mask follows.

    Pictures [B, 3, H, W] in 0..1, masks [B, H, W]; what comes in from outside the picture is ignored.
    """
    size = len(pictures)

    def between(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(size, *shape, generator=generator)

    zoom = between(1 - SCALE, 1 + SCALE)
    flip = torch.where(between(0, 1) < 0.5, -1.0, 1.0)
    theta = torch.zeros(size, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = zoom * flip, zoom
    theta[:, :, 2] = between(-SHIFT, SHIFT, 2) * 2
    grid = functional.affine_grid(theta, list(pictures.shape), align_corners=False)
    light, contrast = between(1 - JITTER, 1 + JITTER, 1, 1, 1), between(1 - JITTER, 1 + JITTER, 1, 1, 1)
    middle = pictures.mean(dim=(1, 2, 3), keepdim=True)
    moved = functional.grid_sample(
        ((pictures - middle) * contrast + middle * light).clamp(0, 1), grid, align_corners=False
    )
    # Class numbers go up by one, so that the zeros which grid_sample puts outside mean "nothing here".
    shifted = functional.grid_sample(masks[:, None].float() + 1, grid, mode="nearest", align_corners=False)[
        :, 0
    ]
    return moved, torch.where(shifted == 0, IGNORED, shifted - 1).to(masks.dtype)


def overlay(picture: Image.Image, mask: np.ndarray[Any, np.dtype[np.uint8]]) -> Image.Image:
    """The picture, half covered by the colour of each pixel's class."""
    colors = _COLORS[mask % len(_COLORS)]
    colors[mask == IGNORED] = 0
    mixed = (np.asarray(picture.convert("RGB"), dtype=np.float32) + colors) / 2
    return Image.fromarray(mixed.astype(np.uint8))


def named_figures(name: str, labels: Mapping[int, str], values: Sequence[float]) -> dict[str, float]:
    """A figure for each class, under the name of both; numbered where two would have the same."""
    short = [labels[number].replace(" ", "_") for number in range(len(values))]
    if len(set(short)) < len(short):
        short = [f"{number}_{label}" for number, label in enumerate(short)]
    return {f"{name}_{label}": value for label, value in zip(short, values, strict=True)}
