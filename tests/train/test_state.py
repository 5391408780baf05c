"""The running mean, against diffusers' own."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel

from tests.train.test_plan import plan
from train.state import State


def test_the_running_mean_is_that_of_diffusers_and_stands_in_only_for_a_while() -> None:
    module = torch.nn.Linear(4, 4)
    state = State(module, torch.optim.SGD(module.parameters()), Accelerator(cpu=True), plan(), 0, 0.7)
    theirs = EMAModel(module.parameters(), decay=0.7)
    for step in range(1, 9):
        with torch.no_grad():
            module.weight += torch.randn(4, 4, generator=torch.Generator().manual_seed(step))
        state.progress.step = step
        state.follow()
        theirs.step(module.parameters())
    trained = module.weight.clone()
    with state.averaged():
        torch.testing.assert_close(module.weight, theirs.shadow_params[0])
        assert not torch.allclose(module.weight, trained)
    assert torch.equal(module.weight, trained)
    state.take_mean()
    torch.testing.assert_close(module.weight, theirs.shadow_params[0])
