"""dreambooth: one subject, from a few images and one prompt that names it.

With a class prompt, images of the class are trained along (prior preservation), so that the adapter
learns the subject without making every member of its class look like it. Class images are squares, as the
base draws them, also where the subject's images are trained at their own shapes.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from train.subject import ClassImages, SubjectData, keep_drawn, make_class_folder
from train.tasks.denoisers import join
from train.tasks.diffusion import LOSS_NOTE, Diffusion, Encoded
from train.tasks.latents import Latents
from train.tasks.task import Evaluation, Setup


class DreamBooth:
    """All images share the instance prompt; class images, if any, share the class prompt."""

    def __init__(self, setup: Setup, data: SubjectData) -> None:
        config = setup.config
        self.diffusion = Diffusion(setup)
        self.module: nn.Module = self.diffusion.module
        self.images, self.held_out_images = len(data.train), 0
        self.names: Sequence[str] = [path.name for path in data.train]
        instance_prompt = config.instance_prompt or ""
        self._texts = self.diffusion.texts([instance_prompt])
        self._latents = self.diffusion.encode_images(data.train, buckets=config.aspect_buckets)
        self.buckets: Sequence[Hashable] | None = self._latents.shapes if config.aspect_buckets else None
        self._watched: Encoded | None = None
        if data.watched:
            watched = self.diffusion.encode_images(data.watched, buckets=config.aspect_buckets)
            self._watched = watched, self._texts
        self._prior_weight = config.prior_weight
        self._class_latents: Latents | None = None
        prompts = [instance_prompt]
        if config.class_prompt:
            self._class_texts = self.diffusion.texts([config.class_prompt])
            class_images: list[Path | Image.Image] = list(data.train)
            if not setup.measuring:
                class_images = self._class_images(config.class_prompt, data.classes)
            self._class_latents = self.diffusion.encode_images(class_images)
            prompts.append(config.class_prompt)
        self.prompts: Sequence[str] = config.sample_prompts or tuple(prompts)
        self._shown = self.diffusion.texts(self.prompts)
        self.diffusion.release_encoders()

    def loss(self, module: nn.Module, indices: Sequence[int], generator: torch.Generator) -> torch.Tensor:
        """Mean denoising error of the subject, plus that of as many class images times its weight."""
        size = len(indices)
        latents = self._latents.draw(indices, generator)
        text = self._texts.take(indices)
        if self._class_latents is None:
            return self.diffusion.denoising_loss(module, latents, text, generator).mean()
        chosen = torch.randint(0, len(self._class_latents), (size,), generator=generator)
        class_latents = self._class_latents.draw(chosen.tolist(), generator)
        class_text = self._class_texts.take(indices)
        if latents.shape == class_latents.shape:
            both, texts = torch.cat([latents, class_latents]), join([text, class_text])
            errors = self.diffusion.denoising_loss(module, both, texts, generator)
            error, class_error = errors[:size].mean(), errors[size:].mean()
        else:
            error = self.diffusion.denoising_loss(module, latents, text, generator).mean()
            class_error = self.diffusion.denoising_loss(module, class_latents, class_text, generator).mean()
        return error + self._prior_weight * class_error

    def watch(self) -> tuple[float, float] | None:
        """Denoising error on images of the subject that are trained on, and on as many that are held out."""
        return self.diffusion.watch((self._latents, self._texts), self._watched)

    def sample(self, step: int, folder: Path) -> Path:
        """Redraw the grid of samples with one more column."""
        return self.diffusion.sample(step, self.prompts, self._shown, folder)

    def evaluate(self) -> Evaluation:
        """Denoising loss of base and adapter on the subject, and on its class (there: drift)."""
        metrics = self.diffusion.compare(self._latents, self._texts)
        if self._class_latents is not None:
            on_class = self.diffusion.compare(self._class_latents, self._class_texts)
            metrics |= {f"class_{name}": value for name, value in on_class.items()}
        return Evaluation(split="train", metrics=metrics, note=LOSS_NOTE)

    def verify(self, folder: Path) -> float:
        """Diffusers alone loads the folder into a fresh denoiser, which must answer alike."""
        return self.diffusion.verify(folder, self._latents, self._texts)

    def save(self, folder: Path) -> None:
        """Write the weights as diffusers does."""
        self.diffusion.save(folder)

    def _class_images(self, prompt: str, classes: ClassImages) -> list[Path | Image.Image]:
        """The user's class images, and as many drawn by the base as are missing.

        Drawn ones are kept in the user's class folder, where there is one, for the next training.
        """
        if not classes.to_draw:
            return [*classes.given, *classes.drawn]
        first = self.diffusion.setup.first
        if first:
            make_class_folder(classes)
        drawn = self.diffusion.drawn_by_base(prompt, self._class_texts, classes.to_draw)
        if first:
            keep_drawn(classes, drawn)
        return [*classes.given, *drawn]
