"""text-to-image: a style or a theme, learnt from captioned images."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path

import torch
from torch import nn

from train.dataset import CaptionData, CaptionedImage
from train.tasks.denoisers import replace_where
from train.tasks.diffusion import LOSS_NOTE, Diffusion, Encoded
from train.tasks.task import Evaluation, Setup

SAMPLES = 4


class TextToImage:
    """Each image with its caption; now and then with the empty prompt, which guidance needs."""

    def __init__(self, setup: Setup, data: CaptionData) -> None:
        self.diffusion = Diffusion(setup)
        self.module: nn.Module = self.diffusion.module
        self.images, self.held_out_images = len(data.train), len(data.test)
        self.names: Sequence[str] = [item.path.name for item in data.train]
        self._dropout = setup.config.caption_dropout
        self._in_buckets = setup.config.aspect_buckets
        self._trained = self._encode(data.train)
        self._latents, self._texts = self._trained
        self.buckets: Sequence[Hashable] | None = self._latents.shapes if self._in_buckets else None
        self._watched = self._encode(data.watched) if data.watched else None
        self._judged = self._encode(data.test) if data.test else self._trained
        shown = [item.caption for item in data.test or data.train]
        every = max(1, len(shown) // SAMPLES)
        self.prompts: Sequence[str] = setup.config.sample_prompts or tuple(shown[::every][:SAMPLES])
        self._shown = self.diffusion.texts(self.prompts)
        self.diffusion.release_encoders()

    def _encode(self, items: Sequence[CaptionedImage]) -> Encoded:
        return (
            self.diffusion.encode_images([item.path for item in items], buckets=self._in_buckets),
            self.diffusion.texts([item.caption for item in items]),
        )

    def loss(self, module: nn.Module, indices: Sequence[int], generator: torch.Generator) -> torch.Tensor:
        """Mean denoising error."""
        latents = self._latents.draw(indices, generator)
        dropped = torch.rand(len(indices), generator=generator) < self._dropout
        text = self._texts.take(indices)
        if dropped.any():
            text = replace_where(dropped, text, self.diffusion.no_text.take([0]))
        return self.diffusion.denoising_loss(module, latents, text, generator).mean()

    def watch(self) -> tuple[float, float] | None:
        """Denoising error on training images and on as many watched."""
        return self.diffusion.watch(self._trained, self._watched)

    def sample(self, step: int, folder: Path) -> Path:
        """Redraw the grid of samples with one more column."""
        return self.diffusion.sample(step, self.prompts, self._shown, folder)

    def evaluate(self) -> Evaluation:
        """Denoising loss of base and adapter, on the held-out images where there are any."""
        metrics = self.diffusion.compare(*self._judged)
        return Evaluation(split="test" if self.held_out_images else "train", metrics=metrics, note=LOSS_NOTE)

    def verify(self, folder: Path) -> float:
        """Diffusers alone loads the folder into a fresh denoiser, which must answer alike."""
        return self.diffusion.verify(folder, *self._judged)

    def save(self, folder: Path) -> None:
        """Write the weights as diffusers does."""
        self.diffusion.save(folder)
