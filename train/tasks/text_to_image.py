"""text-to-image: a style or a theme, learnt from captioned images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from train.dataset import CaptionData
from train.tasks.diffusion import LOSS_NOTE, Diffusion
from train.tasks.task import Evaluation, Setup

SAMPLES = 4


class TextToImage:
    """Each image with its caption; now and then with the empty prompt, which guidance needs."""

    def __init__(self, setup: Setup, data: CaptionData) -> None:
        self.diffusion = Diffusion(setup)
        self.module: nn.Module = self.diffusion.unet
        self.images, self.held_out_images = len(data.train), len(data.test)
        self._dropout = setup.config.caption_dropout
        self._latents = self.diffusion.encode_images([item.path for item in data.train])
        captions = [item.caption for item in data.train]
        self._text = self.diffusion.encode_prompts(captions)
        self._no_text = self.diffusion.encode_prompts([""])
        self._test = data.test
        shown = [item.caption for item in data.test] or captions
        every = max(1, len(shown) // SAMPLES)
        self.prompts: Sequence[str] = setup.config.sample_prompts or tuple(shown[::every][:SAMPLES])

    def parameter_groups(self) -> list[dict[str, Any]]:
        """One group: the adapter."""
        return [{"params": [p for p in self.module.parameters() if p.requires_grad], "rate": 1.0}]

    def loss(self, module: nn.Module, indices: Sequence[int], generator: torch.Generator) -> torch.Tensor:
        """Mean denoising error."""
        latents = self._latents.draw(indices, generator)
        text = self._text[list(indices)]
        dropped = torch.rand(len(indices), generator=generator) < self._dropout
        text = torch.where(dropped.to(text.device)[:, None, None], self._no_text, text)
        return self.diffusion.denoising_loss(module, latents, text, generator).mean()

    def sample(self, step: int, folder: Path) -> Path:
        """Redraw the grid of samples with one more column."""
        return self.diffusion.sample(step, self.prompts, folder)

    def evaluate(self) -> Evaluation:
        """Denoising loss of base and adapter, on the held-out images where there are any."""
        if not self._test:
            metrics = self.diffusion.compare(self._latents, self._text)
            return Evaluation(split="train", metrics=metrics, note=LOSS_NOTE)
        latents = self.diffusion.encode_images([item.path for item in self._test])
        text = self.diffusion.encode_prompts([item.caption for item in self._test])
        metrics = self.diffusion.compare(latents, text)
        return Evaluation(split="test", metrics=metrics, note=LOSS_NOTE)

    def save(self, folder: Path) -> None:
        """Write the weights as diffusers does."""
        self.diffusion.save(folder)
