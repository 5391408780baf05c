"""What LoRA adds to one layer's output, when every sample of the batch may use other adapters.

Shapes: N samples, or groups of samples side by side that use the same; T tokens (or pixels) of each; R rank
rows; D adapters with DoRA.

    y (N, T, out) = gain * (y - bias) + bias + (x (N, T, in) @ a^T) @ (gain * scale * b)

A gain is 1 but for DoRA (https://arxiv.org/abs/2402.09353), where it is the magnitude m over the norm of
the adapted weight. With `s` the request's scale that norm is sqrt(|W|^2 + 2 s <W, BA> + s^2 |BA|^2), for
each output: four vectors that do not depend on the request.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

DORA_ROWS = 4
"""Rows of b that an adapter with DoRA takes beyond its rank: m, |W|^2, <W, BA>, |BA|^2."""


@dataclass(eq=False)
class Gathered:
    """What the samples of one layer's input use of the pool."""

    rows: torch.Tensor
    """(N, R) int64, rows of the pool."""
    a: torch.Tensor
    """(N, R, in); for an embedding, whose `in` is its whole table, the columns of the pool (P, in)."""
    b: torch.Tensor
    """(N, R, out), the scales multiplied in."""
    gain: torch.Tensor | None
    """(N, 1, out), of the layer's own output; None when no sample uses DoRA."""
    weight: torch.Tensor | None = None
    """(N, in, out): each sample's own, once there is one; see `own_weights.py`."""

    def each(self, times: int) -> Gathered:
        """The same for samples that stand `times` times, side by side."""
        if times == 1:
            return self
        rows, a, b = (t.repeat_interleave(times, 0) for t in (self.rows, self.a, self.b))
        return Gathered(rows, a, b, None if self.gain is None else self.gain.repeat_interleave(times, 0))


Add = Callable[[Any, torch.Tensor, torch.Tensor, Gathered], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of layer that LoRA can change."""

    widths: tuple[int, int]
    """Columns of a and b that the layer needs."""
    add: Add
    """(layer, its input, its output, what the samples use) → output with LoRA."""


def kind_of(layer: nn.Module) -> Kind | None:
    """How LoRA changes `layer`, or None when it cannot."""
    if isinstance(layer, nn.Linear):
        return Kind((layer.in_features, layer.out_features), _add_linear)
    # peft's own A convolution knows neither groups nor dilation.
    if isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.dilation == (1, 1):
        return Kind((layer.in_channels * math.prod(layer.kernel_size), layer.out_channels), _add_conv)
    if isinstance(layer, nn.Embedding):
        return Kind((layer.num_embeddings, layer.embedding_dim), _add_embedding)
    return None


def dora_rows(weight: torch.Tensor, down: torch.Tensor, up: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
    """The four extra rows of b, float32 (4, out); see the module's docstring.

    Args:
        weight: W, (out, ...).
        down: A, (r, ...), of the same trailing shape.
        up: B with alpha / rank multiplied in, (out, r).
        m: magnitudes, `out` numbers in any shape.
    """
    w, change = weight.float().flatten(1), up.float() @ down.float().flatten(1)
    return torch.stack([m.float().flatten(), (w * w).sum(1), (w * change).sum(1), (change * change).sum(1)])


def dora_gain(rows: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Magnitude over the adapted weight's norm, (..., out), from `dora_rows` (..., 4, out) and scales (...).

    It is 1 where the four rows are zero: there is no such adapter, or it leaves the layer alone.
    """
    m, base, cross, change = rows.float().unbind(-2)
    s = scale.float()[..., None]
    squared = (base + 2 * s * cross + s * s * change).clamp(min=0)
    return (m / squared.sqrt()).nan_to_num(nan=1.0, posinf=torch.inf, neginf=-torch.inf)


def _add_linear(layer: nn.Linear, x: torch.Tensor, y: torch.Tensor, lora: Gathered) -> torch.Tensor:
    """X (N * any, ..., in), y (N * any, ..., out): whatever belongs to a sample is its tokens."""
    n = len(lora.rows)
    hidden = torch.bmm(x.reshape(n, -1, x.shape[-1]), lora.a.transpose(1, 2))
    flat = y.reshape(n, -1, y.shape[-1])
    if lora.gain is not None:
        flat = _with_gain(flat, layer.bias, lora.gain)
    return flat.baddbmm_(hidden, lora.b).view(y.shape)


def _add_conv(layer: nn.Conv2d, x: torch.Tensor, y: torch.Tensor, lora: Gathered) -> torch.Tensor:
    """X (N * any, in, height, width), y (N * any, out, height', width'): A convolves, B mixes channels."""
    lora = lora.each(len(x) // len(lora.rows))
    a = lora.a
    n, rank, _ = a.shape
    if layer.kernel_size == (1, 1) and layer.stride == (1, 1) and layer.padding in ((0, 0), "valid"):
        hidden = torch.bmm(a, x.flatten(2))
    else:
        # Every sample has its own A: one group per sample.
        weight = a.view(n * rank, layer.in_channels, *layer.kernel_size)
        grouped = x.reshape(1, n * layer.in_channels, *x.shape[2:])
        padding: Any = layer.padding
        hidden = functional.conv2d(grouped, weight, stride=layer.stride, padding=padding, groups=n)
        hidden = hidden.view(n, rank, -1)
    flat = y.flatten(2)
    if lora.gain is not None:
        flat = _with_gain(flat.transpose(1, 2), layer.bias, lora.gain).transpose(1, 2)
    return flat.baddbmm_(lora.b.transpose(1, 2), hidden).view(y.shape)


def _add_embedding(layer: nn.Embedding, x: torch.Tensor, y: torch.Tensor, lora: Gathered) -> torch.Tensor:
    """X (N * any, ...) numbers of tokens, y (N * any, ..., out); positions (1, ...) are shared by all."""
    n = len(lora.rows)
    if len(x) < n:
        x, y = x.expand(n, *x.shape[1:]), y.expand(n, *y.shape[1:])
    hidden = lora.a[lora.rows[:, :, None], x.reshape(n, 1, -1)]
    flat = y.reshape(n, -1, y.shape[-1])
    if lora.gain is not None:
        flat = _with_gain(flat, None, lora.gain)
    return torch.baddbmm(flat, hidden.transpose(1, 2), lora.b).view(y.shape)


def put_tokens(y: torch.Tensor, ids: torch.Tensor, first: int, vectors: torch.Tensor) -> torch.Tensor:
    """The vectors of new tokens in place of what a table of embeddings says of their numbers.

    Args:
        y: What it says, (N * any, T, out).
        ids: (N * any, T); the first of a sample's own tokens has the number `first`, the next `first` + 1.
        first: Above the numbers of all tokens that the table knows.
        vectors: Of each sample's tokens, (N, K, out).
    """
    n, most, width = vectors.shape
    place = (ids - first).reshape(n, -1, 1)
    own = vectors.gather(1, place.clamp(0, most - 1).expand(-1, -1, width))
    return torch.where(place >= 0, own, y.reshape(n, -1, width)).view(y.shape)


def _with_gain(y: torch.Tensor, bias: torch.Tensor | None, gain: torch.Tensor) -> torch.Tensor:
    """Output (N, T, out) times gain (N, 1, out), the bias left as it is."""
    return y * gain if bias is None else torch.addcmul(bias - bias * gain, y, gain)
