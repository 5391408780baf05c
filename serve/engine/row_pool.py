"""The row pool: the rank rows of all adapters of one base, and the hooks that add them to its layers.

Every layer that LoRA can change gets a slot: a range of columns in two tensors that all layers share,

    a (P, sum of in)      b (P, sum of out)       P = rows of the pool; row 0 is always zero

so that loading an adapter of rank r fills r rows of each, and activating it is an index: in a forward each
sample has a list of R row ids and scales, padded with row 0. The layers stay what they are: the sum is done
in forward hooks, so module paths, classes and weights do not change. What a layer gathers of the pool is kept
while the same requests come back together, as the steps of a denoising loop do; where that is worth it, a
weight for each sample is kept instead (`own_weights.py`).

`write` may be called from any thread for rows that no forward uses; `mixed` belongs to the owner thread.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from hubctl.adapter.names import current_name, renames
from serve.engine.lora_layers import (
    Add,
    Gathered,
    dora_gain,
    kind_of,
    put_tokens,
)
from serve.engine.mix import DoraMix, Mix, Uses, mix_of
from serve.engine.own_weights import Met, can_keep, own_weights, through_own_weights, worth_keeping

_ALIGN = 16  # columns: every slot starts where wide loads can


@dataclass(frozen=True, slots=True, eq=False)
class Slot:
    """One layer's columns in the pool."""

    index: int
    name: str
    """`component.path`, in the current spelling."""
    layer: nn.Module
    a: slice
    b: slice


@dataclass(frozen=True, slots=True, eq=False)
class HostRows:
    """An adapter's rows in host memory, ready to be copied into the pool."""

    a: torch.Tensor
    """(rows, sum of in), the slots side by side; zero where a layer has a lower rank, or DoRA's rows."""
    b: torch.Tensor
    """(rows, sum of out), likewise; alpha / rank is multiplied in."""
    slots: tuple[Slot, ...]
    """The layers that it changes, in the pool's order."""
    rank: int

    @property
    def rows(self) -> int:
        """Rows that it takes: its rank, and with DoRA the extra rows, which come last."""
        return len(self.b)

    @property
    def size_bytes(self) -> int:
        """Memory that it takes."""
        return self.a.nbytes + self.b.nbytes


class RowPool:
    """The rows of all adapters of one base, and the hooks that add them to its layers."""

    def __init__(
        self,
        components: Mapping[str, nn.Module],
        total_rows: int,
        device: torch.device | None = None,
        vocabularies: Mapping[str, int] | None = None,
    ) -> None:
        """Hook every layer of `components` that LoRA can change.

        They run on `device`; None means where they are now. `vocabularies` says of text encoders how many
        tokens their tokenizers know: numbers from there on are new tokens.
        """
        self.slots: dict[str, Slot] = {}
        self.token_slots: dict[str, Slot] = {}
        """By text encoder: its table of tokens, where it takes new ones."""
        self.mix: Mix | None = None
        """Of the forward that is running; owner thread only."""
        self.row_by_row = False
        """Make a mix even where nobody uses an adapter, with a sample for every row: for compiled graphs."""
        self._answer: torch.Tensor | None = None  # of the layer that is running
        self._loops = False  # whether the forward that is running is a loop's
        self._met: dict[Slot, Met] = {}  # layers that samples of the present mix may have weights in
        # By row: the slots where it may not be zero.
        self._filled: list[frozenset[Slot]] = [frozenset()] * total_rows
        self._last: tuple[tuple[tuple[Uses, int], ...], Mix | None] = (), None
        a_end = b_end = 0
        first = next(next(iter(components.values())).parameters())
        for component, root in components.items():
            rules = renames(component, (path for path, _ in root.named_modules()))
            for path, layer in root.named_modules():
                if (kind := kind_of(layer)) is None:
                    continue
                name = f"{component}.{current_name(path, rules)}"
                a, b = slice(a_end, a_end + kind.widths[0]), slice(b_end, b_end + kind.widths[1])
                self.slots[name] = slot = Slot(len(self.slots), name, layer, a, b)
                a_end = math.ceil(a.stop / _ALIGN) * _ALIGN
                b_end = math.ceil(b.stop / _ALIGN) * _ALIGN
                if type(layer).forward is nn.Linear.forward:
                    layer.register_forward_pre_hook(self._hook_before(slot))
                layer.register_forward_hook(self._hook(slot, kind.add))
            if first_new := (vocabularies or {}).get(component):
                self._hook_tokens(component, root, first_new)
        device = first.device if device is None else device
        self.a = torch.zeros(total_rows, a_end, device=device, dtype=first.dtype)
        self.b = torch.zeros(total_rows, b_end, device=device, dtype=first.dtype)
        self._loads = None
        if self.a.is_cuda:
            self._loads = torch.cuda.Stream(self.a.device)
            torch.cuda.synchronize(self.a.device)  # the zeros, before that stream writes over them

    def write(self, rows: tuple[int, ...], host: HostRows) -> None:
        """Fill `rows`, which no forward uses; all that they held before is gone.

        On a GPU this happens beside the forwards, and is done when the call returns.
        """
        with _finished(self._loads):
            self._write(rows, host)

    def _write(self, rows: tuple[int, ...], host: HostRows) -> None:
        slots, start = frozenset(host.slots), 0
        a = host.a.to(self.a.device, non_blocking=True)
        b = host.b.to(self.b.device, non_blocking=True)
        for first, count in _runs(rows):
            run, part = slice(first, first + count), slice(start, start + count)
            for slot in frozenset().union(*self._filled[run]) - slots:
                self.a[run, slot.a].zero_()
                self.b[run, slot.b].zero_()
            self._filled[run] = [slots] * count
            if slots:  # an adapter of heads alone has none
                _copy_columns(self.a[run], a[part], [slot.a for slot in host.slots])
                _copy_columns(self.b[run], b[part], [slot.b for slot in host.slots])
            start += count

    @contextmanager
    def mixed(self, calls: Sequence[tuple[Uses, int]], weights_bytes: int | None = None) -> Iterator[None]:
        """Make the forward inside follow `calls`: the adapters of each call, and its rows in the batch.

        `weights_bytes` is what samples' own weights may take, which they get from the second forward of the
        same calls on; None for what is no loop, and keeps its rows.
        """
        # A lease gives a use of its own, whose rows nobody changes: the same uses have the same values.
        if self._last[0] != tuple(calls):
            mix = mix_of(calls, self.a, row_by_row=self.row_by_row)
            self._last, self._met = (tuple(calls), mix), {}
        self.mix, self._loops = self._last[1], weights_bytes is not None
        try:
            if self.mix is not None and weights_bytes is not None:
                self._keep_weights(self.mix, weights_bytes)
            yield
        except Exception:
            # Weights that left too little memory must go, and layers that came but half through.
            self._last, self._met = ((), None), {}
            raise
        finally:
            self.mix = self._answer = None

    def _keep_weights(self, mix: Mix, most_bytes: int) -> None:
        """Give samples weights of their own in the layers that the last forward met first."""
        met, self._met = self._met, {}
        if mix.gathered is None:
            return
        for slot in worth_keeping(met, room=most_bytes // (self.a.itemsize * len(mix.rows))):
            layer: Any = slot.layer
            kept = mix.gathered[slot.index]
            kept.weight = own_weights(layer, kept.a, kept.b, seed=slot.index)

    def _hook(self, slot: Slot, add: Add) -> Any:
        def hook(layer: nn.Module, args: tuple[torch.Tensor, ...], y: torch.Tensor) -> torch.Tensor | None:
            mix = self.mix
            if mix is None or slot.index not in mix.layers:
                return None
            if self._answer is not None:
                y, self._answer = self._answer, None
                return y
            return add(layer, args[0], y, self._gathered(slot, mix, len(y)))

        return hook

    def _hook_before(self, slot: Slot) -> Any:
        """Where samples have weights of their own, answer with these, and leave the layer nothing to do."""

        def hook(layer: nn.Linear, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor] | None:
            mix, x = self.mix, args[0]
            if mix is None or mix.gathered is None or slot.index not in mix.layers:
                return None
            gathered = mix.gathered.get(slot.index)
            if gathered is None and self._loops and mix.dora is None and can_keep(layer, x):
                tokens = x.numel() // x.shape[-1] // len(mix.rows)
                self._met[slot] = Met(tokens, layer.in_features, layer.out_features)
            if gathered is None or gathered.weight is None:
                return None
            self._answer = through_own_weights(layer, x, gathered.weight)
            return (x[:0],)

        return hook

    def _hook_tokens(self, component: str, encoder: nn.Module, first: int) -> None:
        """Let the table of tokens of `encoder` take numbers from `first` on for the samples' own tokens."""
        table: Any = encoder.get_input_embeddings()  # type: ignore[operator]
        slot = next(slot for slot in self.slots.values() if slot.layer is table)
        self.token_slots[component] = slot
        asked = torch.empty(0)

        def before(layer: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
            nonlocal asked
            if self.mix is None or self.mix.tokens is None:
                return None
            asked = args[0]
            return (asked.clamp(max=first - 1), *args[1:])

        def after(layer: nn.Module, args: tuple[torch.Tensor, ...], y: torch.Tensor) -> torch.Tensor | None:
            if self.mix is None or self.mix.tokens is None:
                return None
            return put_tokens(y, asked, first, _picked(self.b[:, slot.b], self.mix.tokens))

        table.register_forward_pre_hook(before)
        table.register_forward_hook(after)

    def _gathered(self, slot: Slot, mix: Mix, n: int) -> Gathered:
        """What the `n` rows of a layer's input use."""
        if n % mix.batch and not (n == 1 and isinstance(slot.layer, nn.Embedding)):
            raise RuntimeError(f"{slot.name} got {n} rows, which no batch of {mix.batch} has")
        if mix.gathered is not None and slot.index in mix.gathered:
            return mix.gathered[slot.index]
        a, b, gain = self.a[:, slot.a], _picked(self.b[:, slot.b], mix.rows), None
        if not isinstance(slot.layer, nn.Embedding):
            a = _picked(a, mix.rows)
        b *= mix.scale[..., None]
        if mix.dora is not None:
            b, gain = self._with_dora(slot, mix.dora, b)
        gathered = Gathered(mix.rows, a, b, gain)
        if mix.gathered is not None:
            mix.gathered[slot.index] = gathered
        return gathered

    def _with_dora(self, slot: Slot, dora: DoraMix, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`b` (N, R, out) times its gains, and the gain (N, 1, out) of the layer's own output.

        As in peft, an adapter with DoRA scales all that was there before it: the layer's own output and
        that of the adapters before.
        """
        gain = dora_gain(self.b[:, slot.b][dora.rows], dora.scale).to(b.dtype)
        after = torch.cat([gain.flip(1).cumprod(1).flip(1), torch.ones_like(gain[:, :1])], dim=1)
        before = dora.before[..., None].expand(-1, -1, b.shape[-1])
        return b * after.gather(1, before), after[:, :1]


def _picked(columns: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Rows (N, R) of a slot's columns (P, width) → (N, R, width)."""
    return columns.index_select(0, rows.flatten()).view(*rows.shape, -1)


@contextmanager
def _finished(stream: torch.cuda.Stream | None) -> Iterator[None]:
    """Give the block's GPU work to `stream`, and wait for all of it; without a stream, just run the block.

    On the stream that forwards use, a copy would stand in line behind them, and they behind it.
    """
    if stream is None:
        yield
        return
    with torch.cuda.stream(stream):
        yield
        done = torch.cuda.Event(blocking=True)  # a thread that waits leaves its core to the others
        done.record(stream)
    done.synchronize()


def _copy_columns(rows: torch.Tensor, values: torch.Tensor, columns: Sequence[slice]) -> None:
    """Fill `columns`, from left to right, of `rows` with `values`, where they lie side by side."""
    spans: list[slice] = []  # neighbours are filled in one go
    for span in columns:
        if spans and spans[-1].stop == span.start:
            span = slice(spans.pop().start, span.stop)
        spans.append(span)
    parts = values.split([span.stop - span.start for span in spans], dim=1)
    torch._foreach_copy_([rows[:, span] for span in spans], parts)


@lru_cache(maxsize=64)
def _runs(rows: tuple[int, ...]) -> list[tuple[int, int]]:
    """First and length of each run of neighbours: (4, 5, 6, 9) → (4, 3), (9, 1)."""
    runs: list[tuple[int, int]] = []
    for row in rows:
        if runs and sum(runs[-1]) == row:
            runs[-1] = runs[-1][0], runs[-1][1] + 1
        else:
            runs.append((row, 1))
    return runs
