"""What pictures look like, as unit vectors: by the embedded classifier, by CLIP, or by DINO.

Shapes: N pictures, D features.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from hubctl.errors import InputError
from train.judge import SIDE_PX, load_judge

BATCH = 16


class Embedder(Protocol):
    """Judges pictures by what they look like."""

    def features(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """Unit vectors, [N, D]."""

    def figures(
        self, pictures: Sequence[Image.Image], prompts: Sequence[str], references: Sequence[Image.Image]
    ) -> dict[str, float]:
        """How like the references the pictures are, and how much what their prompts say."""


def open_embedder(folder: Path, name: str, device: torch.device) -> Embedder:
    """The embedder in a folder: the embedded judge, or a CLIP or DINO of transformers.

    Raises:
        InputError: it is none of them.
    """
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if str(config.get("architecture", "")).endswith("Judge"):
        return JudgeEmbedder(folder)
    kind = config.get("model_type")
    if kind == "clip":
        return ClipEmbedder(folder, device)
    if kind in ("dinov2", "dinov3_vit", "dinov2_with_registers", "vit"):
        return DinoEmbedder(folder, device)
    raise InputError(
        f"{name} cannot judge pictures: its model type is {kind!r}",
        hint="give a CLIP or a DINOv2, e.g. --embedder openai/clip-vit-base-patch32",
    )


def likeness(pictures: torch.Tensor, references: torch.Tensor) -> float:
    """Mean cosine of all pairs, as DINO-I and CLIP-I of the DreamBooth paper (arXiv 2208.12242)."""
    return float((pictures @ references.T).mean())


def change(before: torch.Tensor, after: torch.Tensor) -> float:
    """One minus the mean cosine of picture i before and after; 0 for the same."""
    return float(1 - (before * after).sum(dim=-1).mean())


class JudgeEmbedder:
    """The classifier for emoji-64: 64 px pictures by style and by what they show."""

    def __init__(self, folder: Path) -> None:
        self._judge = load_judge(folder)

    def features(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """What its body says, before style and subject part."""
        return functional.normalize(self._judge.features(_small(pictures)), dim=-1)

    def figures(
        self, pictures: Sequence[Image.Image], prompts: Sequence[str], references: Sequence[Image.Image]
    ) -> dict[str, float]:
        """Picture i must show what reference i does, in the style that most references have."""
        styles, subjects = self._judge.predict(_small(pictures))
        true_styles, true_subjects = self._judge.predict(_small(references))
        style = max(dict.fromkeys(true_styles), key=true_styles.count)
        right = [shown == true for shown, true in zip(subjects, true_subjects, strict=True)]
        return {
            "similarity": likeness(self.features(pictures), self.features(references)),
            "same_style": styles.count(style) / len(styles),
            "prompt_adherence": sum(right) / len(right),
        }


class _Transformers:
    """A model of transformers with its image processor."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        from transformers import AutoImageProcessor, AutoModel

        self._device = device
        self._model: Any = AutoModel.from_pretrained(folder, local_files_only=True).to(device).eval()
        self._processor: Any = AutoImageProcessor.from_pretrained(
            folder, backend="pil", local_files_only=True
        )

    def _pixels(self, pictures: Sequence[Image.Image]) -> list[torch.Tensor]:
        parts = [pictures[start : start + BATCH] for start in range(0, len(pictures), BATCH)]
        return [
            self._processor(list(part), return_tensors="pt").pixel_values.to(self._device) for part in parts
        ]


class DinoEmbedder(_Transformers):
    """DINO: the class token of a picture; it knows no text."""

    @torch.no_grad()
    def features(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """The last layer's class token."""
        tokens = [self._model(pixels).last_hidden_state[:, 0] for pixels in self._pixels(pictures)]
        return functional.normalize(torch.cat(tokens), dim=-1).cpu()

    def figures(
        self, pictures: Sequence[Image.Image], prompts: Sequence[str], references: Sequence[Image.Image]
    ) -> dict[str, float]:
        """DINO-I."""
        return {"similarity": likeness(self.features(pictures), self.features(references))}


class ClipEmbedder(_Transformers):
    """CLIP: pictures and prompts in one space."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        from transformers import AutoTokenizer

        super().__init__(folder, device)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)

    @torch.no_grad()
    def features(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """The projected picture."""
        model = self._model
        projected = [
            model.visual_projection(model.vision_model(pixels).pooler_output)
            for pixels in self._pixels(pictures)
        ]
        return functional.normalize(torch.cat(projected), dim=-1).cpu()

    @torch.no_grad()
    def figures(
        self, pictures: Sequence[Image.Image], prompts: Sequence[str], references: Sequence[Image.Image]
    ) -> dict[str, float]:
        """CLIP-I, and CLIP-T: the mean cosine of each picture and its prompt."""
        tokens = self._tokenizer(list(prompts), padding=True, truncation=True, return_tensors="pt")
        read = self._model.text_model(**tokens.to(self._device)).pooler_output
        text = functional.normalize(self._model.text_projection(read), dim=-1).cpu()
        found = self.features(pictures)
        return {
            "similarity": likeness(found, self.features(references)),
            "prompt_adherence": float((found * text).sum(dim=-1).mean()),
        }


def _small(pictures: Sequence[Image.Image]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """uint8 [N, 64, 64, 3]."""
    side = (SIDE_PX, SIDE_PX)
    return np.stack([np.asarray(picture.convert("RGB").resize(side)) for picture in pictures])
