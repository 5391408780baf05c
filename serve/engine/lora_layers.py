"""LoRA over pooled rank rows: any mix of adapters, ranks and scales in one forward.

Every Linear and Conv2d of a base gets a slot: a range of columns in two tensors that all layers share,

    a (P, sum of in)      b (P, sum of out)       P = rows of the pool; row 0 is always zero

so that loading an adapter of rank r is one copy into r rows of each, and activating it is an index. In a
forward each sample has a list of R row ids and scales (padded with row 0), and a layer adds two batched
matmuls to its own output:

    y (N, T, out) += ((x (N, T, in) @ a[rows]^T) * scale) @ b[rows]      N samples, T tokens

The layers stay what they are: the sum is done in forward hooks, so module paths, classes and weights do not
change. `write` may be called from any thread for rows that no forward uses; `mixed` belongs to the owner
thread.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from torch.nn import functional

from hubctl.adapter.layout import AdapterLayout
from hubctl.adapter.names import current_name, renames
from hubctl.errors import AdapterError, AdapterMismatchError

_ALIGN = 16  # columns: every slot starts where wide loads can
_WIDTHS = (4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True, slots=True)
class Slot:
    """One layer's columns in the pool."""

    index: int
    name: str
    """`component.path`, in the current spelling."""
    a: slice
    b: slice


@dataclass(frozen=True, slots=True, eq=False)
class HostRows:
    """An adapter's rows in host memory, ready to be copied into the pool."""

    a: torch.Tensor
    """(r, sum of in)"""
    b: torch.Tensor
    """(r, sum of out); alpha / rank is multiplied in."""
    layers: frozenset[int]
    """Slots that the adapter changes."""

    @property
    def rank(self) -> int:
        """Rows that it takes."""
        return len(self.a)

    @property
    def size_bytes(self) -> int:
        """Memory that it takes."""
        return self.a.nbytes + self.b.nbytes


@dataclass(frozen=True, slots=True, eq=False)
class PooledUse:
    """One adapter of one request, once its rows are filled."""

    rows: tuple[int, ...]
    scale: float
    layers: frozenset[int]
    heads: Mapping[str, nn.Module]
    """Modules that it replaces whole, by path."""


Uses = tuple[PooledUse, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Mix:
    """What each sample of the present forward uses."""

    rows: torch.Tensor
    """(N, R) int64"""
    scale: torch.Tensor
    """(N, R)"""
    layers: frozenset[int]
    """Slots that any sample changes; the others run bare."""
    heads: tuple[Mapping[str, nn.Module], ...]
    """(N)"""
    calls: tuple[tuple[Uses, int], ...]
    """What it was made from."""

    def part(self, samples: Sequence[int]) -> Mix:
        """The mix of some of the samples."""
        index = torch.tensor(samples, device=self.rows.device)
        heads = tuple(self.heads[i] for i in samples)
        return Mix(self.rows[index], self.scale[index], self.layers, heads, ())


class RowPool:
    """The rows of all adapters of one base, and the hooks that add them to its layers."""

    def __init__(self, components: Mapping[str, nn.Module], total_rows: int) -> None:
        """Hook every layer of `components` that LoRA can change; they are on their device already."""
        self.slots: dict[str, Slot] = {}
        self.mix: Mix | None = None
        """Of the forward that is running; owner thread only."""
        a_end = b_end = 0
        first = next(next(iter(components.values())).parameters())
        for component, root in components.items():
            rules = renames(component, (path for path, _ in root.named_modules()))
            for path, layer in root.named_modules():
                if (widths := _widths(layer)) is None:
                    continue
                slot = Slot(
                    len(self.slots),
                    f"{component}.{current_name(path, rules)}",
                    slice(a_end, a_end + widths[0]),
                    slice(b_end, b_end + widths[1]),
                )
                self.slots[slot.name] = slot
                a_end += math.ceil(widths[0] / _ALIGN) * _ALIGN
                b_end += math.ceil(widths[1] / _ALIGN) * _ALIGN
                add = _add_linear if isinstance(layer, nn.Linear) else _add_conv
                layer.register_forward_hook(self._hook(slot, add))
        self.a = torch.zeros(total_rows, a_end, device=first.device, dtype=first.dtype)
        self.b = torch.zeros(total_rows, b_end, device=first.device, dtype=first.dtype)

    def read(self, layout: AdapterLayout) -> HostRows:
        """Bring the LoRA part of an adapter into the form of the pool's rows.

        Raises:
            AdapterMismatchError: a module has no slot here, or another shape.
            AdapterError: it changes nothing that can be changed.
        """
        rank = max((m.rank for m in layout.modules), default=0)
        a = torch.zeros(rank, self.a.shape[1], dtype=self.a.dtype)
        b = torch.zeros(rank, self.b.shape[1], dtype=self.b.dtype)
        layers = set()
        with safe_open(layout.weights_file, framework="pt") as file:
            for m in layout.modules:
                slot = self.slots.get(f"{m.component}.{m.module}")
                if slot is None:
                    raise AdapterMismatchError(f"this base cannot adapt '{m.component}.{m.module}'")
                down = file.get_tensor(m.a_key).flatten(1)
                up = file.get_tensor(m.b_key).flatten(1)
                if (down.shape[1], up.shape[0]) != (slot.a.stop - slot.a.start, slot.b.stop - slot.b.start):
                    raise AdapterMismatchError(f"'{slot.name}' has another shape in the base")
                a[: m.rank, slot.a] = down.to(a.dtype)
                b[: m.rank, slot.b] = (up.T.float() * m.scale).to(b.dtype)
                layers.add(slot.index)
        if not (a.isfinite().all() and b.isfinite().all()):
            raise AdapterError(f"the adapter holds values that do not fit {a.dtype}")
        if self.a.device.type == "cuda":
            a, b = a.pin_memory(), b.pin_memory()
        return HostRows(a, b, frozenset(layers))

    def write(self, rows: Sequence[int], host: HostRows) -> None:
        """Fill `rows`, which no forward uses; what they held before is gone, also where `host` is zero."""
        index = torch.tensor(rows, device=self.a.device)
        self.a[index[: host.rank]] = host.a.to(self.a.device, non_blocking=True)
        self.b[index[: host.rank]] = host.b.to(self.b.device, non_blocking=True)

    @contextmanager
    def mixed(self, calls: Sequence[tuple[Uses, int]]) -> Iterator[None]:
        """Make the forward inside follow `calls`: the adapters of each call, and its rows in the batch."""
        self.mix = self._mix_of(calls)
        try:
            yield
        finally:
            self.mix = None

    def _mix_of(self, calls: Sequence[tuple[Uses, int]]) -> Mix | None:
        if not any(uses for uses, _ in calls):
            return None
        need = max(sum(len(use.rows) for use in uses) for uses, _ in calls)
        width = next((w for w in _WIDTHS if w >= need), need)
        rows, scales, heads = [], [], []
        for uses, n in calls:
            ids = [row for use in uses for row in use.rows]
            scale = [use.scale for use in uses for _ in use.rows]
            padding = width - len(ids)
            rows += [ids + [0] * padding] * n
            scales += [scale + [0.0] * padding] * n
            heads += [{path: head for use in uses for path, head in use.heads.items()}] * n
        return Mix(
            torch.tensor(rows, device=self.a.device),
            torch.tensor(scales, device=self.a.device, dtype=self.a.dtype),
            frozenset().union(*(use.layers for uses, _ in calls for use in uses)),
            tuple(heads),
            tuple(calls),
        )

    def _hook(self, slot: Slot, add: _Add) -> Any:
        def hook(layer: nn.Module, args: tuple[torch.Tensor, ...], y: torch.Tensor) -> torch.Tensor | None:
            mix = self.mix
            if mix is None or slot.index not in mix.layers:
                return None
            return add(layer, args[0], y, *self._gathered(slot, mix, len(y)))

        return hook

    def _gathered(self, slot: Slot, mix: Mix, n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """A (n, R, in), b (n, R, out) and scale (n, R) of a layer's input with n rows."""
        rows, scale = mix.rows, mix.scale
        if n != len(rows):
            if n % len(rows):
                raise RuntimeError(f"{slot.name} got {n} rows, which no {len(rows)} samples have")
            # The layer sees pieces of samples (windows, tokens) as its rows, each sample's side by side.
            rows = rows.repeat_interleave(n // len(rows), 0)
            scale = scale.repeat_interleave(n // len(scale), 0)
        flat = rows.flatten()
        a = self.a[:, slot.a].index_select(0, flat).view(*rows.shape, -1)
        b = self.b[:, slot.b].index_select(0, flat).view(*rows.shape, -1)
        return a, b, scale


_Add = Callable[
    [nn.Module, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor
]


def _widths(layer: nn.Module) -> tuple[int, int] | None:
    """Columns of a and b that the layer needs, or None when LoRA cannot change it."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    # peft's own A convolution knows neither groups nor dilation.
    if isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.dilation == (1, 1):
        return layer.in_channels * math.prod(layer.kernel_size), layer.out_channels
    return None


def _add_linear(
    layer: nn.Module, x: torch.Tensor, y: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """X (n, ..., in), y (n, ..., out); two dimensions are one token each."""
    n = len(x)
    hidden = torch.bmm(x.reshape(n, -1, x.shape[-1]), a.transpose(1, 2)) * scale[:, None, :]
    return torch.baddbmm(y.reshape(n, -1, y.shape[-1]), hidden, b).view(y.shape)


def _add_conv(
    layer: nn.Module, x: torch.Tensor, y: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """X (n, in, height, width), y (n, out, height', width'): A convolves, B mixes channels."""
    assert isinstance(layer, nn.Conv2d)
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
    return torch.baddbmm(y.flatten(2), b.transpose(1, 2), hidden * scale[:, :, None]).view(y.shape)
