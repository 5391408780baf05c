"""Offload: the modules of a base wait in host memory, and only those that run are on the device.

Weights do not change, so the host keeps its copy: leaving the device is to forget what lies there, and only
the way onto it is a copy. Modules that take turns within a step (a denoiser and its ControlNets) form a
group and stay together; every other group leaves when one of its modules is brought.

Only the owner thread moves anything. Other threads may read a module's weights at any time: what they find
is whole, on the host or on the device.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


class Offload:
    """Which of some modules are on the device now."""

    def __init__(self, groups: Iterable[Iterable[nn.Module]], device: torch.device) -> None:
        """Take modules that are in host memory; for a GPU their weights are pinned there."""
        self.device = device
        self.present: frozenset[nn.Module] = frozenset()
        self._group = {module: frozenset(group) for group in map(tuple, groups) for module in group}
        self._host = {module: _weights(module) for module in self._group}
        if device.type == "cuda":
            for module, weights in self._host.items():
                self._host[module] = {key: _pinned(weight) for key, weight in weights.items()}
                _place(module, self._host[module])

    def bring(self, module: nn.Module) -> None:
        """See that `module` is on the device, and nothing of other groups; owner thread only."""
        for other in self.present - self._group[module]:
            _place(other, self._host[other])
        self.present &= self._group[module]
        if module not in self.present:
            # All of it before any is put in place: when memory runs out half-way, the module is as it was.
            copies: dict[int, torch.Tensor] = {}
            for weight in self._host[module].values():
                if id(weight) not in copies:  # tied weights stay one
                    copies[id(weight)] = _like(weight, weight.detach().to(self.device, non_blocking=True))
            _place(module, {key: copies[id(weight)] for key, weight in self._host[module].items()})
            self.present |= {module}


Weights = dict[tuple[str, str], torch.Tensor]
"""Parameters and buffers of a module, by the path of what holds them and their name there."""


def _weights(module: nn.Module) -> Weights:
    return {
        (path, name): weight
        for path, part in module.named_modules()
        for name, weight in itertools.chain(part._parameters.items(), part._buffers.items())
        if weight is not None
    }


def _place(module: nn.Module, weights: Weights) -> None:
    """Put each of `weights` where it belongs: the objects are exchanged, none is written to."""
    parts: dict[str, Any] = dict(module.named_modules())
    for (path, name), weight in weights.items():
        part = parts[path]
        (part._parameters if name in part._parameters else part._buffers)[name] = weight


def _pinned(weight: torch.Tensor) -> torch.Tensor:
    # Quantised weights are several tensors in one object, which cannot be pinned as one: they stay pageable.
    plain = type(weight) in (torch.Tensor, nn.Parameter)
    return _like(weight, weight.detach().pin_memory()) if plain else weight


def _like(weight: torch.Tensor, copy: torch.Tensor) -> torch.Tensor:
    return nn.Parameter(copy, requires_grad=False) if isinstance(weight, nn.Parameter) else copy
