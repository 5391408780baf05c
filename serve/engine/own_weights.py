"""Weights of their own for the samples of a loop: W + BA of each, made once, instead of rows in every step.

Rows cost a layer two further products in each forward. For as long as the same requests come back, a weight
(in, out) for each sample says the same in one. It is worth its memory where a sample brings many tokens: rows
read the layer's input and read and write its output once more, a weight of one's own is read once for each
sample.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

K = TypeVar("K", bound=Hashable)

_CACHED = 1 << 17
"""Numbers of a weight on a CPU: one for each of eight samples stays in a processor's cache."""
_LEAST_WORTH = 0.4
"""Below 1, since the two products of rows cost something beside what they read and write."""
_LOST_BITS = {torch.float16: 13, torch.bfloat16: 16}
"""Of float32's 23 bits of fraction, those that a number in half precision does not have."""


@dataclass(frozen=True, slots=True)
class Met:
    """A linear layer as a loop's forward meets it."""

    tokens: int
    """Of each sample."""
    inputs: int
    outputs: int

    @property
    def numbers(self) -> int:
        """Of its weight."""
        return self.inputs * self.outputs

    @property
    def worth(self) -> float:
        """Numbers that rows read and write, for each that a weight of a sample's own has."""
        return self.tokens * (self.inputs + 2 * self.outputs) / self.numbers


def worth_keeping(layers: Mapping[K, Met], *, room: int) -> list[K]:
    """The layers that are to have weights of their own, the most worthwhile first.

    Args:
        layers: those that could.
        room: numbers that there is room for, of one sample in all layers.
    """
    kept = []
    for key in sorted(layers, key=lambda key: -layers[key].worth):
        if layers[key].worth > _LEAST_WORTH and layers[key].numbers <= room:
            room -= layers[key].numbers
            kept.append(key)
    return kept


def can_keep(layer: nn.Linear, x: torch.Tensor) -> bool:
    """Whether samples can have weights of their own in `layer`, whose input is `x`.

    Not of weights that are quantised. On a CPU they must be small and float32: its memory is slow, and it has
    few quick products in half precision.
    """
    weight = layer.weight
    if type(weight) is not nn.Parameter or weight.device != x.device or weight.dtype != x.dtype:
        return False
    if weight.device.type == "cpu":
        return weight.dtype == torch.float32 and weight.numel() <= _CACHED
    return weight.dtype == torch.float32 or weight.dtype in _LOST_BITS


def own_weights(layer: nn.Linear, a: torch.Tensor, b: torch.Tensor, seed: int) -> torch.Tensor:
    """W^T + a^T @ b of each sample, (N, in, out), from a (N, R, in) and b (N, R, out).

    Half precision is rounded up or down by chance, in proportion to what is lost; `seed` decides. Rounded to
    the nearest, a change of less than half a step would be lost in every number of the weight, and so whole.
    """
    weight = layer.weight.T
    if weight.dtype == torch.float32:
        return torch.baddbmm(weight.expand(len(a), -1, -1), a.transpose(1, 2), b)
    wide = torch.baddbmm(weight.float().expand(len(a), -1, -1), a.float().transpose(1, 2), b.float())
    chance = torch.Generator(weight.device).manual_seed(seed)
    first_kept = 1 << _LOST_BITS[weight.dtype]
    noise = torch.randint(first_kept, weight.shape, generator=chance, device=weight.device, dtype=torch.int32)
    wide.view(torch.int32).add_(noise).bitwise_and_(-first_kept)
    return wide.to(weight.dtype)


def through_own_weights(layer: nn.Linear, x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The layer with `weights` (N, in, out) of each sample: x (N * any, ..., in) → (N * any, ..., out)."""
    n, _, out = weights.shape
    tokens = x.reshape(n, -1, x.shape[-1])
    y = tokens @ weights if layer.bias is None else torch.baddbmm(layer.bias, tokens, weights)
    return y.view(*x.shape[:-1], out)
