"""The loops that are compared, over one trained module: hubctl's, a plain one, and nothing but the step.

Each is a generator that does one optimizer step whenever it is asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR

from train.config import TrainConfig
from train.dataset import CaptionedImage, fitted, open_image
from train.events import StepDone
from train.fused import fuse_lora, unfuse_lora
from train.loop import run_steps
from train.plan import Plan, batches
from train.state import State
from train.tasks.text_to_image import TextToImage


def our_loop(
    task: TextToImage, config: TrainConfig, plan: Plan, accelerator: Accelerator, state: State
) -> Iterator[None]:
    """`train.loop` as `hubctl train` runs it: cached latents and text, guards, events."""
    for event in run_steps(task, config, plan, accelerator, state):
        if isinstance(event, StepDone):
            yield


def plain_loop(
    task: TextToImage, images: Sequence[CaptionedImage], encoders: Any, plan: Plan, accelerator: Accelerator
) -> Iterator[None]:
    """What `train_text_to_image_lora.py` of diffusers does: every step reads, encodes, and only then learns.

    `encoders` is a pipeline that still has its text encoder and VAE.
    """
    diffusion = task.diffusion
    unet, vae = diffusion.denoiser, encoders.vae
    trained = [p for p in unet.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=plan.learning_rate)
    rates = LambdaLR(optimizer, lambda _: 1.0)
    scheduler = encoders.scheduler
    kind = scheduler.config.prediction_type
    for indices in batches(len(images), plan.batch_size, plan.steps, 0):
        unfuse_lora(unet)  # the script has peft's own layers
        unet.train()
        chosen = [images[index] for index in indices]
        arrays = np.stack([fitted(open_image(item.path), (plan.resolution_px,) * 2) for item in chosen])
        pixels = torch.from_numpy(arrays).permute(0, 3, 1, 2).to(diffusion.setup.device, torch.float32)
        tokens = encoders.tokenizer(
            [item.caption for item in chosen], padding="max_length", truncation=True, return_tensors="pt"
        ).input_ids.to(diffusion.setup.device)
        with torch.no_grad():
            encoded = vae.encode(pixels / 127.5 - 1)
            latents = encoded.latent_dist.sample() if hasattr(encoded, "latent_dist") else encoded.latents
            latents = latents * (getattr(vae.config, "scaling_factor", None) or 1.0)
            text = encoders.text_encoder(tokens)[0]
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, scheduler.config.num_train_timesteps, (len(latents),)).to(latents.device)
        noisy = scheduler.add_noise(latents, noise, timesteps)
        target = noise if kind == "epsilon" else scheduler.get_velocity(latents, noise, timesteps)
        frozen = diffusion.setup.frozen_dtype
        with accelerator.autocast():
            answer = unet(noisy.to(frozen), timesteps, text.to(frozen), return_dict=False)[0]
            loss = functional.mse_loss(answer.float(), target.float())
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        rates.step()
        optimizer.zero_grad()
        float(loss.detach())  # what the script logs
        fuse_lora(unet)
        yield


def bare_loop(task: TextToImage, plan: Plan, accelerator: Accelerator) -> Iterator[None]:
    """Nothing but forward, backward and optimizer, on the same tensors again and again."""
    diffusion = task.diffusion
    unet, frozen = diffusion.denoiser, diffusion.setup.frozen_dtype
    trained = [p for p in unet.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=plan.learning_rate)
    generator = torch.Generator().manual_seed(0)
    indices = list(range(plan.batch_size))
    places = [index % task.images for index in indices]
    clean = task._latents.draw(places, generator)
    noised = diffusion.noise.add(
        clean, torch.randn_like(clean), diffusion.noise.places(len(clean), generator)
    )
    noisy, target = noised.latents.to(frozen), noised.target.float()
    conditions = {name: value.to(frozen) for name, value in task._texts.take(places).items()}
    while True:
        unet.train()
        with accelerator.autocast():
            answer = diffusion._kind.predict(unet, diffusion.pipeline, noisy, noised.timesteps, conditions)
            loss = functional.mse_loss(answer.float(), target)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        float(loss.detach())
        yield
