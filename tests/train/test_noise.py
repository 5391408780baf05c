"""The noise of bases, against diffusers' own formulas."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import compute_snr

from hubctl.errors import InputError
from train.tasks.noise import DiffusionNoise, FlowNoise

PLACES = torch.tensor([0, 10, 500, 999])


def schedule(kind: str) -> DDPMScheduler:
    return DDPMScheduler(prediction_type=kind, beta_schedule="scaled_linear", beta_end=0.012)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_min_snr_is_what_diffusers_scripts_compute(kind: str) -> None:
    theirs = schedule(kind)
    snr = compute_snr(theirs, PLACES)
    weights = torch.stack([snr, 5 * torch.ones_like(snr)], dim=1).min(dim=1)[0]
    weights = weights / snr if kind == "epsilon" else weights / (snr + 1)
    assert torch.allclose(DiffusionNoise(theirs.config, "a base").min_snr_weights(PLACES, 5.0), weights)


def test_pure_noise_has_a_finite_weight() -> None:
    config = dict(schedule("epsilon").config) | {"rescale_betas_zero_snr": True}
    weights = DiffusionNoise(config, "a base").min_snr_weights(PLACES, 5.0)
    assert torch.isfinite(weights).all()


def test_what_cannot_be_trained_is_said() -> None:
    with pytest.raises(InputError, match="predicts 'flow'"):
        DiffusionNoise(dict(schedule("epsilon").config) | {"prediction_type": "flow"}, "a base")
    with pytest.raises(InputError, match="--min-snr is for diffusion"):
        FlowNoise(FlowMatchEulerDiscreteScheduler().config, "a base").min_snr_weights(PLACES, 5.0)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_mixes_as_the_bases_own_scheduler(shift: float) -> None:
    theirs = FlowMatchEulerDiscreteScheduler(shift=shift)
    clean, noise = torch.randn(4, 2, 3, 3), torch.randn(4, 2, 3, 3)
    noised = FlowNoise(theirs.config, "a base").add(clean, noise, PLACES)
    assert torch.equal(noised.timesteps, theirs.timesteps[PLACES])
    expected = theirs.scale_noise(clean, noised.timesteps, noise)
    assert torch.allclose(noised.latents, expected)
    # Following the target from here to the end of the line gives the clean latents.
    sigmas = theirs.sigmas[PLACES].view(-1, 1, 1, 1)
    assert torch.allclose(noised.latents - sigmas * noised.target, clean, atol=1e-5)


def test_places_of_flow_are_more_often_in_the_middle() -> None:
    places = FlowNoise(FlowMatchEulerDiscreteScheduler().config, "a base").places(
        20_000, torch.Generator().manual_seed(0)
    )
    assert 0 <= int(places.min()) <= int(places.max()) <= 999
    middle = ((places > 250) & (places < 750)).float().mean()
    # Of a logit-normal distribution: P(|logit| < ln 3).
    assert float(middle) == pytest.approx(0.728, abs=0.02)
