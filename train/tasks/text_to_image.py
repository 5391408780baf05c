"""text-to-image: a style or a theme, learnt from captioned images."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path

import torch
from torch import nn

from train.dataset import CaptionData
from train.tasks.denoisers import replace_where
from train.tasks.diffusion import LOSS_NOTE, Diffusion
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
        self._latents = self.diffusion.encode_images([item.path for item in data.train])
        self.buckets: Sequence[Hashable] | None = (
            self._latents.shapes if setup.config.aspect_buckets else None
        )
        captions = [item.caption for item in data.train]
        self._texts = self.diffusion.texts(captions)
        self._watched = (
            (
                self.diffusion.encode_images([item.path for item in data.watched]),
                self.diffusion.texts([item.caption for item in data.watched]),
            )
            if data.watched
            else None
        )
        self._judged = self._latents, self._texts
        if data.test:
            self._judged = (
                self.diffusion.encode_images([item.path for item in data.test]),
                self.diffusion.texts([item.caption for item in data.test]),
            )
        shown = [item.caption for item in data.test] or captions
        every = max(1, len(shown) // SAMPLES)
        self.prompts: Sequence[str] = setup.config.sample_prompts or tuple(shown[::every][:SAMPLES])
        self._shown = self.diffusion.texts(self.prompts)
        self.diffusion.release_encoders()

    def loss(self, module: nn.Module, indices: Sequence[int], generator: torch.Generator) -> torch.Tensor:
        """Mean denoising error."""
        latents = self._latents.draw(indices, generator)
        dropped = torch.rand(len(indices), generator=generator) < self._dropout
        text = self._texts.take(indices)
        if dropped.any():
            text = replace_where(dropped, text, self.diffusion.no_text.take([0]))
        return self.diffusion.denoising_loss(module, latents, text, generator).mean()

    def watch(self) -> tuple[float, float] | None:
        """Denoising error on the first training images and on the watched, with the same noise each time."""
        if self._watched is None:
            return None
        count = len(self._watched[0])
        return (
            self.diffusion.fixed_loss(self._latents, self._texts, count),
            self.diffusion.fixed_loss(*self._watched, count),
        )

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
