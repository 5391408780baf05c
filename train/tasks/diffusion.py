"""What the diffusion tasks share: a frozen pipeline with an adapter in its denoiser.

Shapes: B images, C latent channels, H x W latent pixels, S text tokens, D text width.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from peft import get_peft_model_state_dict
from PIL import Image
from torch import nn

from hubctl.errors import InputError
from train.adapt import lora_config, resolve_targets, trained_in_float32
from train.dataset import open_image, square
from train.tasks.grid import chosen_looks, draw_grid
from train.tasks.task import Setup

if TYPE_CHECKING:
    from collections.abc import Iterator

SAMPLE_STEPS, SAMPLE_GUIDANCE = 20, 5.0
ENCODE_BATCH = 16
JUDGED_IMAGES = 32
JUDGED_TIMESTEPS = 4
LOSS_NOTE = "`loss_*` is the denoising error of base and adapter on the same noise at the same timesteps."


class Latents:
    """Encoded images: the VAE's mean and deviation, from which each step draws anew."""

    def __init__(self, mean: torch.Tensor, deviation: torch.Tensor | None) -> None:
        self.mean, self.deviation = mean, deviation

    def __len__(self) -> int:
        return len(self.mean)

    def draw(self, indices: Sequence[int], generator: torch.Generator) -> torch.Tensor:
        """Latents of the images `indices`, [B, C, H, W]."""
        chosen = list(indices)
        mean = self.mean[chosen]
        if self.deviation is None:
            return mean
        return mean + self.deviation[chosen] * noise_like(mean, generator)


class Diffusion:
    """A Stable Diffusion pipeline, frozen, with a LoRA adapter in its UNet."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        family = setup.base.family
        # Text encoder and VAE stay in float32: they run once, and a VAE in
        # half precision can answer NaN (https://github.com/huggingface/diffusers/issues/4736).
        pipeline: Any = StableDiffusionPipeline.from_pretrained(
            setup.base.path, dtype=torch.float32, safety_checker=None, requires_safety_checker=False
        )
        pipeline.set_progress_bar_config(disable=True)
        for component in (pipeline.vae, pipeline.text_encoder, pipeline.unet):
            component.requires_grad_(False)
            component.to(setup.device)
        self.pipeline = pipeline
        self.unet: Any = pipeline.unet
        self.unet.to(setup.frozen_dtype)
        targets = resolve_targets(self.unet, setup.config.targets, default_targets=family.default_targets)
        plan = setup.plan
        self.unet.add_adapter(
            lora_config(rank=plan.rank, alpha=plan.alpha, targets=targets, seed=setup.config.seed)
        )
        trained_in_float32(self.unet)
        self.schedule: Any = DDPMScheduler.from_config(pipeline.scheduler.config)
        self._columns: list[tuple[str, list[Image.Image]]] = []

    # -- encoding, once --------------------------------------------------------------------

    @torch.no_grad()
    def encode_images(self, images: Sequence[Path | Image.Image]) -> Latents:
        """Latents of the images' middle squares at the plan's resolution."""
        vae = self.pipeline.vae
        means, deviations = [], []
        for start in range(0, len(images), ENCODE_BATCH):
            pixels = self._pixels(images[start : start + ENCODE_BATCH])
            encoded = vae.encode(pixels)
            if hasattr(encoded, "latent_dist"):
                means.append(encoded.latent_dist.mean)
                deviations.append(encoded.latent_dist.std)
            else:
                # AutoencoderTiny answers with the latents themselves, scaled already.
                means.append(encoded.latents)
        scale = float(getattr(vae.config, "scaling_factor", None) or 1.0)
        shift = float(getattr(vae.config, "shift_factor", None) or 0.0)
        mean = (torch.cat(means) - shift) * scale
        return Latents(mean, torch.cat(deviations) * scale if deviations else None)

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> torch.Tensor:
        """Text states of the prompts, [N, S, D], by the pipeline's own encoding."""
        states = []
        for start in range(0, len(prompts), ENCODE_BATCH):
            batch = list(prompts[start : start + ENCODE_BATCH])
            text, _ = self.pipeline.encode_prompt(batch, self.setup.device, 1, False)
            states.append(text)
        return torch.cat(states)

    def _pixels(self, images: Sequence[Path | Image.Image]) -> torch.Tensor:
        """[B, 3, side, side] in -1..1."""
        side = self.setup.plan.resolution_px
        arrays = [square(open_image(image) if isinstance(image, Path) else image, side) for image in images]
        pixels = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)
        return pixels.to(self.setup.device, torch.float32) / 127.5 - 1

    # -- the loss --------------------------------------------------------------------------

    def denoising_loss(
        self,
        module: nn.Module,
        latents: torch.Tensor,
        text: torch.Tensor,
        generator: torch.Generator,
        timesteps: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Squared error of the prediction for each image, [B]; noise and timesteps from `generator`.

        What the network predicts (noise, velocity or the clean latents) is the base's own choice.
        """
        noise = noise_like(latents, generator)
        if timesteps is None:
            top = self.schedule.config.num_train_timesteps
            timesteps = torch.randint(0, top, (len(latents),), generator=generator)
        timesteps = timesteps.to(latents.device)
        noisy = self.schedule.add_noise(latents, noise, timesteps)
        dtype = self.setup.frozen_dtype
        predicted = module(noisy.to(dtype), timesteps, text.to(dtype), return_dict=False)[0]
        target = self._target(latents, noise, timesteps)
        return (predicted.float() - target.float()).pow(2).mean(dim=(1, 2, 3))

    def _target(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        kind = self.schedule.config.prediction_type
        if kind == "epsilon":
            return noise
        if kind == "v_prediction":
            velocity: torch.Tensor = self.schedule.get_velocity(latents, noise, timesteps)
            return velocity
        if kind == "sample":
            return latents
        raise InputError(f"{self.setup.base.id} predicts {kind!r}, which cannot be trained yet")

    @torch.no_grad()
    def compare(self, latents: Latents, text: torch.Tensor) -> dict[str, float]:
        """The loss of the base and of the adapter on the same noise at the same timesteps."""
        chosen = list(range(min(len(latents), JUDGED_IMAGES)))
        top = self.schedule.config.num_train_timesteps
        self.unet.eval()
        losses = []
        for adapted in (False, True):
            generator = torch.Generator().manual_seed(self.setup.config.seed)
            total = 0.0
            with self._adapter(adapted):
                for part in range(JUDGED_TIMESTEPS):
                    timestep = int(top * (part + 0.5) / JUDGED_TIMESTEPS)
                    for start in range(0, len(chosen), ENCODE_BATCH):
                        batch = chosen[start : start + ENCODE_BATCH]
                        loss = self.denoising_loss(
                            self.unet,
                            latents.draw(batch, generator),
                            text[batch],
                            generator,
                            torch.full((len(batch),), timestep),
                        )
                        total += float(loss.sum())
            losses.append(total / (JUDGED_TIMESTEPS * len(chosen)))
        return {"loss_base": losses[0], "loss_adapter": losses[1]}

    # -- looking at it ---------------------------------------------------------------------

    @torch.no_grad()
    def draw(self, prompts: Sequence[str], *, adapted: bool = True, seed: int = 0) -> list[Image.Image]:
        """One picture for each prompt, by the stock pipeline; picture i starts from `seed` + i."""
        was_training = self.unet.training
        self.unet.eval()
        side = self.setup.plan.resolution_px
        pictures: list[Image.Image] = []
        with self._adapter(adapted):
            for start in range(0, len(prompts), ENCODE_BATCH):
                batch = list(prompts[start : start + ENCODE_BATCH])
                generators = [
                    torch.Generator().manual_seed(seed + start + offset) for offset in range(len(batch))
                ]
                pictures += self.pipeline(
                    batch,
                    height=side,
                    width=side,
                    num_inference_steps=SAMPLE_STEPS,
                    guidance_scale=SAMPLE_GUIDANCE,
                    generator=generators,
                ).images
        self.unet.train(was_training)
        return pictures

    def sample(self, step: int, prompts: Sequence[str], folder: Path) -> Path:
        """Add a column to the grid of samples: the base for step 0, then the adapter as it grows."""
        pictures = self.draw(prompts, seed=self.setup.config.seed)
        self._columns.append((f"step {step}" if step else "base", pictures))
        for number, picture in enumerate(pictures, start=1):
            picture.save(folder / f"sample-{number}.png")
        columns = [self._columns[look] for look in chosen_looks(len(self._columns))]
        rows = [[column[row] for _, column in columns] for row in range(len(prompts))]
        path = folder / "grid.png"
        draw_grid(prompts, [title for title, _ in columns], rows).save(path)
        return path

    @contextmanager
    def _adapter(self, enabled: bool) -> Iterator[None]:
        if enabled:
            yield
            return
        self.unet.disable_adapters()
        try:
            yield
        finally:
            self.unet.enable_adapters()

    # -- the file --------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Write `pytorch_lora_weights.safetensors` in float32, alpha and rank in its header.

        Without that header diffusers takes alpha = rank, and the adapter's strength is lost.
        """
        settings = self.unet.peft_config["default"].to_dict()
        # peft keeps the targets in a set, whose order differs from run to run.
        settings["target_modules"] = sorted(settings["target_modules"])
        StableDiffusionPipeline.save_lora_weights(
            folder,
            unet_lora_layers=get_peft_model_state_dict(self.unet),
            unet_lora_adapter_metadata=settings,
        )


def noise_like(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Normal noise from a CPU generator, so that a seed means the same on every device."""
    return torch.randn(tensor.shape, generator=generator).to(tensor)
