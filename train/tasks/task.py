"""What the loop needs from a task."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import nn

from hubctl.base_models import BaseModel
from train.config import TrainConfig
from train.plan import Plan


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """What every task is built from."""

    config: TrainConfig
    plan: Plan
    base: BaseModel
    device: torch.device
    frozen_dtype: torch.dtype
    """Precision of the frozen base; the adapter is float32 in any case."""
    first: bool = True
    """Whether this is the process that writes what all have made."""
    measuring: bool = False
    """Only some steps are measured: nothing slow that does not change what a step takes is to be made."""

    def autocast(self) -> torch.autocast:
        """As the loop does for a step: lets a base in half precision meet what has float32."""
        return torch.autocast(self.device.type, self.frozen_dtype, enabled=self.frozen_dtype != torch.float32)


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Figures of the adapter and of its base."""

    split: Literal["train", "test"]
    """The images it was judged on."""
    metrics: dict[str, float]
    note: str = ""
    """How to read the figures, for the card."""


class Task(Protocol):
    """One kind of training: data in tensors, a loss, a look at the result, a file."""

    module: nn.Module
    """The adapted base; the loop trains its parameters that require a gradient."""
    images: int
    """How many training images there are."""
    names: Sequence[str]
    """What people call each of them: its file."""
    held_out_images: int
    buckets: Sequence[Hashable] | None
    """The shape of each training image, where they differ; those of a batch are alike."""
    prompts: Sequence[str]
    """What the samples show; empty when no prompt makes them."""

    def loss(self, module: nn.Module, indices: Sequence[int], generator: torch.Generator) -> torch.Tensor:
        """Mean loss (a scalar) over the training images `indices`; `module` as the loop wrapped it."""

    def watch(self) -> tuple[float, float] | None:
        """Loss on as many training images as are watched, and on the watched; None where none are."""

    def sample(self, step: int, folder: Path) -> Path:
        """Draw the adapter as it is now into `folder`, beside earlier looks; return the picture of all."""

    def evaluate(self) -> Evaluation:
        """Measure the adapter against its base."""

    def verify(self, folder: Path) -> float:
        """Load what `save` wrote into a fresh base, by the stock libraries alone, and compare the answers.

        The largest difference, relative to the largest value; the trained module is of no use afterwards.

        Raises:
            IntegrityError: what was saved is not what was trained.
        """

    def save(self, folder: Path) -> None:
        """Write the weights as diffusers or peft do, with everything needed to load them unaided."""
