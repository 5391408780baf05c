"""How a base was taught to denoise: what noise does to latents, and what the network should answer.

Shapes: B images, C latent channels, H x W latent pixels. A timestep is told by its place in the schedule,
an integer tensor [B] from 0 to `count - 1`.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

from hubctl.errors import InputError

PREDICTIONS = ("epsilon", "v_prediction", "sample")


class Noised(NamedTuple):
    """One question to the denoiser, and the answer to it."""

    latents: torch.Tensor
    """[B, C, H, W], between clean and pure noise."""
    timesteps: torch.Tensor
    """[B], as the denoiser takes them."""
    target: torch.Tensor
    """[B, C, H, W], what it should predict."""


class Noise(Protocol):
    """The noise of one base."""

    count: int
    """How many places the schedule has."""

    def places(self, size: int, generator: torch.Generator) -> torch.Tensor:
        """Places to train at, [size], drawn as the base's own training drew them."""

    def add(self, latents: torch.Tensor, noise: torch.Tensor, places: torch.Tensor) -> Noised:
        """Mix clean latents and noise at these places."""

    def min_snr_weights(self, places: torch.Tensor, gamma: float) -> torch.Tensor:
        """Weights of the losses at these places, [B]."""


class DiffusionNoise:
    """Variance-preserving noise in discrete steps (DDPM, arXiv 2006.11239).

    The network predicts the noise, the velocity (arXiv 2202.00512) or the clean latents: the base's choice.

    Raises:
        InputError: it predicts something else.
    """

    def __init__(self, config: Any, base: str) -> None:
        self._schedule: Any = DDPMScheduler.from_config(config)
        self.count = int(self._schedule.config.num_train_timesteps)
        self._kind = self._schedule.config.prediction_type
        if self._kind not in PREDICTIONS:
            raise InputError(
                f"{base} predicts {self._kind!r}, which cannot be trained yet",
                hint=f"choose a base that predicts one of: {', '.join(PREDICTIONS)}",
            )

    def places(self, size: int, generator: torch.Generator) -> torch.Tensor:
        """Every step alike."""
        return torch.randint(0, self.count, (size,), generator=generator)

    def add(self, latents: torch.Tensor, noise: torch.Tensor, places: torch.Tensor) -> Noised:
        """Mix them by the schedule's own coefficients."""
        places = places.to(latents.device)
        noisy = self._schedule.add_noise(latents, noise, places)
        if self._kind == "epsilon":
            target = noise
        elif self._kind == "sample":
            target = latents
        else:
            target = self._schedule.get_velocity(latents, noise, places)
        return Noised(noisy, places, target)

    def min_snr_weights(self, places: torch.Tensor, gamma: float) -> torch.Tensor:
        """Min-SNR-gamma (arXiv 2303.09556, section 3.4), for what this network predicts."""
        part = self._schedule.alphas_cumprod[places.cpu()]
        snr = part / (1 - part)
        capped = snr.clamp(max=gamma)
        # Seen from the clean latents all of them weigh the same; each prediction has its own factor.
        if self._kind == "sample":
            return capped
        # A last step of pure noise (zero terminal SNR) has no noise to predict: its weight is one.
        return torch.where(snr == 0, 1.0, capped / snr) if self._kind == "epsilon" else capped / (snr + 1)


class FlowNoise:
    """Straight lines from latents to noise; the network predicts their direction (rectified flow).

    Places are drawn logit-normally, as for Stable Diffusion 3 (arXiv 2403.03206, section 3.1: `rf/lognorm`),
    from the base's own table of sigmas, which holds its shift.
    """

    def __init__(self, config: Any, base: str) -> None:
        schedule: Any = FlowMatchEulerDiscreteScheduler.from_config(config)
        self.count = int(schedule.config.num_train_timesteps)
        self._sigmas, self._timesteps = schedule.sigmas[: self.count], schedule.timesteps

    def places(self, size: int, generator: torch.Generator) -> torch.Tensor:
        """The middle more often than the ends."""
        part = torch.sigmoid(torch.randn(size, generator=generator))
        return (part * self.count).long().clamp(max=self.count - 1)

    def add(self, latents: torch.Tensor, noise: torch.Tensor, places: torch.Tensor) -> Noised:
        """Mix them in parts of 1 - sigma and sigma."""
        sigmas = self._sigmas[places.cpu()].to(latents)[:, None, None, None]
        timesteps = self._timesteps[places.cpu()].to(latents.device)
        return Noised((1 - sigmas) * latents + sigmas * noise, timesteps, noise - latents)

    def min_snr_weights(self, places: torch.Tensor, gamma: float) -> torch.Tensor:
        """There is none: where flow matching looks is what its drawing of places decides."""
        raise InputError("--min-snr is for diffusion, and this base flows", hint="train without --min-snr")
