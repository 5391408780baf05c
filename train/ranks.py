"""What the processes of one training tell each other; one process alone tells itself.

All methods but `part` are met by every process, or those that call them wait for the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar, cast

import torch
from accelerate import Accelerator
from torch import distributed, nn

from hubctl.errors import InputError

T = TypeVar("T")


class Ranks:
    """This process among its like: `rank` of `count`."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.rank: int = accelerator.process_index
        self.count: int = accelerator.num_processes
        self._device = accelerator.device

    @property
    def first(self) -> bool:
        """Whether this is the process that looks, writes and decides."""
        return self.rank == 0

    def part(self, indices: tuple[int, ...]) -> tuple[int, ...]:
        """This process's examples of a step's; all have equally many."""
        size = len(indices) // self.count
        return indices[self.rank * size : (self.rank + 1) * size]

    def exchange(self, *numbers: float) -> list[tuple[float, ...]]:
        """The numbers of each process, by rank: small and often."""
        if self.count == 1:
            return [numbers]
        own = torch.tensor(numbers, dtype=torch.float64, device=self._device)
        found = [torch.empty_like(own) for _ in range(self.count)]
        distributed.all_gather(found, own)
        return [tuple(row) for row in torch.stack(found).tolist()]

    def gather(self, value: T) -> list[T]:
        """Any value of each process, by rank."""
        if self.count == 1:
            return [value]
        found: list[T | None] = [None] * self.count
        distributed.all_gather_object(found, value)
        return cast(list[T], found)

    def from_first(self, value: T) -> T:
        """What the first process has for it."""
        if self.count == 1:
            return value
        box = [value]
        distributed.broadcast_object_list(box, src=0)
        return box[0]

    @torch.no_grad()
    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Put the mean over all processes in place of each gradient.

        By hand and once a step, not by DistributedDataParallel's hooks: an adapter's gradients are few, so
        there is little to hide behind the backward; the module stays unwrapped, and neither unused
        parameters nor checkpointed activations need settings. Above all, a process that ran out of memory
        half way through its backward leaves no other waiting: they have agreed on the step before.
        """
        if self.count == 1:
            return
        own = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([gradient.flatten() for gradient in own])
        distributed.all_reduce(flat)
        flat /= self.count
        for parameter, mean in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            if parameter.grad is not None:
                parameter.grad.copy_(mean.view_as(parameter))
            elif mean.any():  # unused here, but not elsewhere; unused everywhere stays without
                parameter.grad = mean.view_as(parameter).clone()

    def require_same(self, facts: object) -> None:
        """Raise `InputError` unless all processes are about to make the same training."""
        others = [rank for rank, found in enumerate(self.gather(facts)) if found != facts]
        if others:
            raise InputError(
                f"process {others[0]} of {self.count} has other settings, data or versions than process "
                f"{self.rank}",
                hint="start all of them with the same command, on copies of the same data",
            )

    def leave(self) -> None:
        """Wait for all, then part: what comes after is not exchanged."""
        if self.count > 1:
            self.exchange(0)
            distributed.destroy_process_group()
