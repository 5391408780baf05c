"""An adapter's weights file as rows for the pool."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from hubctl.adapter.header import non_finite
from hubctl.adapter.layout import AdapterLayout, LoraModule
from hubctl.errors import AdapterError, AdapterMismatchError
from serve.engine.lora_layers import DORA_ROWS, dora_rows
from serve.engine.row_pool import HostLayer, HostRows, RowPool, Slot
from serve.engine.tensor_file import open_tensors


def read_rows(layout: AdapterLayout, pool: RowPool) -> HostRows:
    """Bring the LoRA part of an adapter into the form of the pool's rows, pinned where there is a GPU.

    Raises:
        AdapterMismatchError: a module has no slot here, or another shape.
        AdapterError: it holds NaN, infinity, or values beyond the pool's precision.
    """
    layers, a_end, b_end = [], 0, 0
    for module in layout.modules:
        slot = _slot(module, pool.slots)
        b_rows = module.rank + (DORA_ROWS if module.magnitude_key else 0)
        layers.append(HostLayer(slot, module.rank, b_rows, a_end, b_end))
        a_end += module.rank * (slot.a.stop - slot.a.start)
        b_end += b_rows * (slot.b.stop - slot.b.start)
    pinned = pool.a.is_cuda
    a = torch.empty(a_end, dtype=pool.a.dtype, pin_memory=pinned)
    b = torch.empty(b_end, dtype=pool.b.dtype, pin_memory=pinned)
    with open_tensors(layout.weights_file, layout.header) as read:
        for module, layer in zip(layout.modules, layers, strict=True):
            down, up = read(module.a_key), read(module.b_key)
            flat_b = b[layer.b_start : layer.b_start + layer.b_rows * up.shape[0]].view(layer.b_rows, -1)
            a[layer.a_start : layer.a_start + down.numel()].copy_(down.flatten())
            up = up.flatten(1) if module.scale == 1 else up.flatten(1).float() * module.scale
            flat_b[: module.rank].copy_(up.T)
            if module.magnitude_key:
                weight = _weight(layer.slot).cpu().dequantize()  # of a plain tensor: float32
                weight = weight.T if module.embedding else weight
                m = read(module.magnitude_key)
                flat_b[module.rank :].copy_(dora_rows(weight, down, up, m))
    refuse_non_finite(layout, a, b)
    rank = max((m.rank for m in layout.modules), default=0)
    return HostRows(a, b, tuple(layers), rank, any(m.magnitude_key for m in layout.modules))


def _slot(module: LoraModule, slots: Mapping[str, Slot]) -> Slot:
    name = f"{module.component}.{module.module}"
    slot = slots.get(name)
    if slot is None:
        raise AdapterMismatchError(f"this base cannot adapt '{name}'")
    weight = _weight(slot)
    out, into = (1, 0) if module.embedding else (0, 1)
    if module.b_shape[0] != weight.shape[out] or module.a_shape[1] != weight.shape[into]:
        raise AdapterMismatchError(f"'{name}' has another shape in the base")
    if module.a_shape[2:] != tuple(weight.shape[2:]):
        raise AdapterMismatchError(f"'{name}' has another kernel in the base")
    return slot


def _weight(slot: Slot) -> torch.Tensor:
    weight = slot.layer.weight
    assert isinstance(weight, torch.Tensor)
    return weight.detach()


def refuse_non_finite(layout: AdapterLayout, *tensors: torch.Tensor) -> None:
    """Raise `AdapterError` when values that came out of an adapter's file are NaN or infinite."""
    if all_finite(*tensors):
        return
    if bad := non_finite(layout.weights_file, layout.header):
        raise AdapterError(f"{len(bad)} of its tensors hold NaN or infinity, '{bad[0]}' first")
    raise AdapterError(f"the adapter holds values that do not fit {tensors[0].dtype}")


def all_finite(*tensors: torch.Tensor) -> bool:
    """Whether no value is NaN or infinite."""
    # The extremes are NaN when any value is: one pass, and nothing as large as the tensor is made.
    return all(bool(extreme.isfinite()) for t in tensors if t.numel() for extreme in t.aminmax())
