"""A module's forward through torch.compile, as graphs that no adapter, rank or number of rows compiles anew.

The rows and scales of a mix are inputs of the graph like any other, (N, R) tensors whose two sizes are left
open. Which layers add LoRA is fixed instead, since a graph that left it open would pay for all of them: it is
the layers that adapters of this kind of base usually change. A mix that changes others, or has DoRA, runs the
module as it is. All other sizes are fixed: with the height and width of images open too, tracing takes
three times as long. So a size of images that nobody asked for before makes requests wait for the compiler.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from serve.engine.mix import Mix
from serve.engine.row_pool import RowPool

_MOST_GRAPHS = 64
"""Two for each size of images: one row alone is a graph of its own. torch's own limit is 8."""


class Compiled:
    """Stands in for one module's forward; owner thread only."""

    def __init__(
        self,
        module: nn.Module,
        pool: RowPool,
        backend: str,
        *,
        targets: Collection[str],
        unbatched: Collection[str] = (),
    ) -> None:
        """Replace the forward of `module` in place.

        Args:
            module: one whose layers have slots in `pool`.
            pool: where the mix of the present forward is.
            backend: of torch.compile.
            targets: endings of the paths of the layers that add LoRA in the graph.
            unbatched: names of arguments without a batch dimension.
        """
        self._forward, self._pool, self._unbatched = module.forward, pool, unbatched
        inside = set(module.modules())
        slots = [slot for slot in pool.slots.values() if slot.layer in inside]
        endings = tuple(f".{target}" for target in targets)
        self._layers = frozenset(slot.index for slot in slots if slot.name.endswith(endings))
        self._others = frozenset(slot.index for slot in slots) - self._layers
        self._graph = torch.compile(self._traced, backend=backend, dynamic=False)
        self._first = True
        pool.row_by_row = True
        module.forward = self  # so that hooks of the module itself stay outside

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the graph where it covers the present mix, else the module as it is."""
        mix = self._pool.mix
        if mix is None or mix.dora is not None or mix.layers & self._others:
            return self._forward(*args, **kwargs)
        if self._first:
            self._first = False
            _set_up_this_thread()
            self._forward(*args, **kwargs)  # transformers puts hooks into its models then, which no trace can
        args = _opened(args)
        kwargs = {name: v if name in self._unbatched else _opened(v) for name, v in kwargs.items()}
        return self._graph(_opened(mix.rows, 2), _opened(mix.scale, 2), args, kwargs)

    def _traced(self, rows: torch.Tensor, scale: torch.Tensor, args: Any, kwargs: Any) -> Any:
        before = self._pool.mix
        self._pool.mix = Mix(rows, scale, None, self._layers, (), len(rows), None)
        try:
            return self._forward(*args, **kwargs)
        finally:
            self._pool.mix = before


def _set_up_this_thread() -> None:
    """Settings of torch.compile, which each thread has for itself."""
    torch._dynamo.config.recompile_limit = _MOST_GRAPHS
    # Open sizes that are equal in the first forward need not stay so.
    torch.fx.experimental._config.use_duck_shape = False


def _opened(value: Any, dims: int = 1) -> Any:
    """Let the first `dims` sizes of the tensors in nested containers be any, in the graph that follows."""
    if isinstance(value, torch.Tensor) and value.dim():
        # Strides are fixed in a graph, and calls come with unusual ones, of 0 in what was expanded.
        value = value.clone(memory_format=torch.contiguous_format)
        for dim in range(dims):
            torch._dynamo.maybe_mark_dynamic(value, dim)
    elif isinstance(value, dict):
        return {key: _opened(item, dims) for key, item in value.items()}
    elif isinstance(value, tuple | list):
        return type(value)(_opened(item, dims) for item in value)
    return value
