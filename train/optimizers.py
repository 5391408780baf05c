"""Optimizers by name, each from the library that keeps it."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from hubctl.errors import InputError
from train.config import TrainConfig
from train.plan import Plan

ParameterGroups = list[dict[str, Any]]


def open_optimizer(groups: ParameterGroups, config: TrainConfig, plan: Plan) -> torch.optim.Optimizer:
    """The optimizer that the user asked for, over the task's groups (`rate` is a factor on the plan's).

    Raises:
        InputError: the library that has it is not installed.
    """
    rate, decay = plan.learning_rate, config.weight_decay
    if config.optimizer == "adamw":
        # A CPU would go through an adapter's many small tensors one by one, ten operations for each.
        fused = all(p.device.type == "cpu" for group in groups for p in group["params"])
        return torch.optim.AdamW(groups, lr=rate, weight_decay=decay, fused=fused or None)
    if config.optimizer == "adafactor":
        from transformers.optimization import Adafactor

        # The rate is the plan's, as for every other optimizer, and not Adafactor's own.
        return Adafactor(groups, lr=rate, weight_decay=decay, relative_step=False, scale_parameter=False)
    if config.optimizer == "adamw8bit":
        try:
            from bitsandbytes.optim import AdamW8bit
        except ImportError as error:
            raise _absent("adamw8bit", "bitsandbytes") from error
        return AdamW8bit(groups, lr=rate, weight_decay=decay)
    try:
        from prodigyopt import Prodigy
    except ImportError as error:
        raise _absent("prodigy", "prodigyopt") from error
    # It greets on stdout, which is for data alone.
    with contextlib.redirect_stdout(None):
        # As diffusers' advanced scripts have it: https://huggingface.co/blog/sdxl_lora_advanced_script
        return Prodigy(
            groups,
            lr=rate,
            betas=(0.9, 0.99),
            weight_decay=decay,
            use_bias_correction=True,
            safeguard_warmup=True,
        )


def set_rate(optimizer: Any, rate: float, step: int) -> None:
    """Give each group its own part of the rate of `step` (from 0), and none beyond the group's last."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate"] if step < group["until_step"] else 0.0


def _absent(name: str, library: str) -> InputError:
    return InputError(
        f"--optimizer {name} needs {library}", hint=f"pip install {library}, or --optimizer adamw"
    )
