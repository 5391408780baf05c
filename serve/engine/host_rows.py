"""An adapter's weights file as rows for the pool."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch

from hubctl.adapter.header import non_finite
from hubctl.adapter.layout import AdapterLayout, LoraModule
from hubctl.errors import AdapterError, AdapterMismatchError
from serve.engine.lora_layers import DORA_ROWS, dora_rows
from serve.engine.row_pool import HostRows, RowPool, Slot
from serve.engine.tensor_file import open_tensors


def read_rows(layout: AdapterLayout, pool: RowPool, max_bytes: int) -> HostRows:
    """Bring the LoRA part of an adapter into the form of the pool's rows, pinned where there is a GPU.

    Raises:
        AdapterMismatchError: a module has no slot here, or another shape.
        AdapterError: it takes more rows than there are, or, since one layer has a far higher rank than the
            others, more than `max_bytes`; or it holds NaN, infinity, or values beyond the pool's precision.
    """
    modules = {_slot(module, pool.slots): module for module in layout.modules}
    tables = _token_tables(layout, pool)
    slots = tuple(sorted(modules.keys() | tables.keys(), key=lambda slot: slot.index))
    ranks = {module.rank for module in layout.modules}
    rank, dora = max(ranks, default=0), any(module.magnitude_key for module in layout.modules)
    words = len(layout.tokens.names) if layout.tokens else 0
    rows = rank + (DORA_ROWS if dora else 0) + words
    if rows >= len(pool.a):
        raise AdapterError(f"it takes {rows} rows (this server has {len(pool.a) - 1})")
    a_widths = [slot.a.stop - slot.a.start for slot in slots]
    b_widths = [slot.b.stop - slot.b.start for slot in slots]
    size = rows * (sum(a_widths) + sum(b_widths)) * pool.a.itemsize
    if len(ranks) > 1 and size > max_bytes:
        raise AdapterError(f"its ranks differ: it takes {size:,} bytes (this server takes {max_bytes:,})")
    # Zero is what stays where a layer has fewer rows than others.
    new = torch.zeros if dora or words or len(ranks) > 1 else torch.empty
    a = new(rows, sum(a_widths), dtype=pool.a.dtype, pin_memory=pool.a.is_cuda)
    b = new(rows, sum(b_widths), dtype=pool.b.dtype, pin_memory=pool.b.is_cuda)
    targets: list[torch.Tensor] = []
    sources: list[torch.Tensor] = []
    with open_tensors(layout.weights_file, layout.header) as read:
        for slot, to_a, to_b in zip(slots, a.split(a_widths, 1), b.split(b_widths, 1), strict=True):
            module = modules.get(slot)
            if module is None:
                continue  # a table with new tokens only
            down, up = read(module.a_key).flatten(1), read(module.b_key).flatten(1)
            if module.scale != 1:
                up = up.float() * module.scale
            if module.magnitude_key:
                weight = _weight(slot).detach().cpu().dequantize()  # of a plain tensor: float32
                weight = weight.T if module.embedding else weight
                to_b[rank : rank + DORA_ROWS].copy_(dora_rows(weight, down, up, read(module.magnitude_key)))
            if module.rank < rows:
                to_a, to_b = to_a[: module.rank], to_b[: module.rank]
            targets += to_a, to_b
            sources += down, up.T
        if targets:
            torch._foreach_copy_(targets, sources)
    if layout.tokens:
        with open_tensors(layout.tokens.file, layout.tokens.header) as read:
            for slot, to_b in zip(slots, b.split(b_widths, 1), strict=True):
                if slot in tables:
                    to_b[rows - words :].copy_(read(tables[slot]))
    refuse_non_finite(layout, a, b)
    return HostRows(a, b, slots, rank)


def _token_tables(layout: AdapterLayout, pool: RowPool) -> dict[Slot, str]:
    """The tables that get vectors of new tokens, and where those are in the file."""
    if layout.tokens is None:
        return {}
    if layout.tokens.keys.keys() != pool.token_slots.keys():
        raise AdapterMismatchError(
            f"its new tokens are for {_listed(layout.tokens.keys)}, this base takes them for "
            f"{_listed(pool.token_slots)}"
        )
    return {pool.token_slots[component]: key for component, key in layout.tokens.keys.items()}


def _listed(names: Iterable[str]) -> str:
    return " and ".join(sorted(names)) or "nothing"


def _slot(module: LoraModule, slots: Mapping[str, Slot]) -> Slot:
    name = f"{module.component}.{module.module}"
    slot = slots.get(name)
    if slot is None:
        raise AdapterMismatchError(f"this base cannot adapt '{name}'")
    made_for = (module.b_shape[0], *module.a_shape[1:])
    if _weight(slot).shape != (made_for[::-1] if module.embedding else made_for):
        raise AdapterMismatchError(f"'{name}' has another shape in the base")
    return slot


def _weight(slot: Slot) -> torch.Tensor:
    weight = slot.layer.weight
    assert isinstance(weight, torch.Tensor)
    return weight


def refuse_non_finite(layout: AdapterLayout, *tensors: torch.Tensor) -> None:
    """Raise `AdapterError` when values that came out of an adapter's file are NaN or infinite."""
    if all_finite(*tensors):
        return
    bad = non_finite(layout.weights_file, layout.header)
    bad += non_finite(layout.tokens.file, layout.tokens.header) if layout.tokens else []
    if bad:
        raise AdapterError(f"{len(bad)} of its tensors hold NaN or infinity, '{bad[0]}' first")
    raise AdapterError(f"the adapter holds values that do not fit {tensors[0].dtype}")


def all_finite(*tensors: torch.Tensor) -> bool:
    """Whether no value is NaN or infinite."""
    # The extremes are NaN when any value is: one pass, and nothing as large as the tensor is made.
    return all(math.isfinite(extreme) for t in tensors if t.numel() for extreme in t.aminmax())
