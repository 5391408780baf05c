"""Tensors of a safetensors file as bytes, and as numpy arrays where somebody computes with them.

What only renames keeps the bytes; numpy is imported by the functions that need numbers.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hubctl.adapter.header import ITEM_BYTES, Header
from hubctl.errors import AdapterError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

FLOATS = ("F64", "F32", "F16", "BF16")
"""The types that `from_array` rounds to."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """Bytes (little-endian, row-major) with the dtype and shape that a safetensors header gives them."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    def reshaped(self, *shape: int) -> Tensor:
        """The same numbers in another shape of as many."""
        return Tensor(self.dtype, shape, self.data)

    def rows(self, start: int, end: int) -> Tensor:
        """A part of the first dimension."""
        row = len(self.data) // self.shape[0]
        return Tensor(self.dtype, (end - start, *self.shape[1:]), self.data[start * row : end * row])


def read_tensors(path: Path, header: Header) -> dict[str, Tensor]:
    """All tensors of `path`, whose header has been checked.

    Raises:
        AdapterError: the file has become shorter than its header says.
    """
    found = {}
    with path.open("rb") as file:
        for name, entry in header.tensors.items():
            file.seek(entry.start)
            data = file.read(entry.end - entry.start)
            if len(data) < entry.end - entry.start:
                raise AdapterError(f"{path.name} was cut short while it was read")
            found[name] = Tensor(entry.dtype, entry.shape, data)
    return found


def without_data(header: Header) -> dict[str, Tensor]:
    """All tensors of `header`, with no bytes: for who wants shapes alone. Alphas, which are values, are 1."""
    return {
        name: scalar(1) if name.endswith(".alpha") else Tensor(tensor.dtype, tensor.shape, b"")
        for name, tensor in header.tensors.items()
    }


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file; the same tensors and metadata always give the same bytes."""
    # The widest numbers come first, as the library has it, so that each lies where a processor reads it.
    order = sorted(tensors, key=lambda name: (-ITEM_BYTES[tensors[name].dtype], name))
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    position = 0
    for name in order:
        tensor = tensors[name]
        end = position + len(tensor.data)
        header[name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            file.write(tensors[name].data)


def scalar(value: float) -> Tensor:
    """One float32 number."""
    return Tensor("F32", (), struct.pack("<f", value))


def number(tensor: Tensor) -> float:
    """The one number that `tensor` holds.

    Raises:
        AdapterError: it holds several, or none.
    """
    forms = {
        "F64": "<d", "F32": "<f", "F16": "<e", "I64": "<q", "I32": "<i", "I16": "<h", "I8": "<b", "U8": "<B",
    }  # fmt: skip
    if tensor.dtype == "BF16" and len(tensor.data) == 2:
        return float(struct.unpack("<f", b"\0\0" + tensor.data)[0])
    form = forms.get(tensor.dtype)
    if form is None or len(tensor.data) != struct.calcsize(form):
        raise AdapterError(f"an alpha is {tensor.dtype} of shape {list(tensor.shape)}, not a number")
    return float(struct.unpack(form, tensor.data)[0])


def to_array(tensor: Tensor, where: str = "a tensor") -> Array:
    """The numbers of `tensor`, which errors call `where`, in float64 and in its shape.

    Raises:
        AdapterError: there is NaN or infinity among them, or they are neither floats of 16 bits or more
            nor integers.
    """
    import numpy as np

    plain = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1"}
    if tensor.dtype == "BF16":  # the upper half of a float32
        values = (np.frombuffer(tensor.data, "<u2").astype("<u4") << 16).view("<f4")
    elif tensor.dtype in plain:
        values = np.frombuffer(tensor.data, plain[tensor.dtype])
    else:
        raise AdapterError(
            f"'{where}' has numbers of type {tensor.dtype}, with which hubctl does not compute",
            hint="save the adapter in float32, float16 or bfloat16",
        )
    if not np.isfinite(values).all():
        raise AdapterError(f"'{where}' holds NaN or infinity", hint="take an earlier checkpoint")
    return values.astype(np.float64).reshape(tensor.shape)


def from_array(array: Array, dtype: str) -> Tensor:
    """The numbers of `array`, rounded to the nearest of `dtype`, one of FLOATS."""
    import numpy as np

    if dtype == "BF16":
        bits = array.astype("<f4").view("<u4")
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16  # ties go to the even one
        data = rounded.astype("<u2").tobytes()
    else:
        data = np.ascontiguousarray(array, {"F64": "<f8", "F32": "<f4", "F16": "<f2"}[dtype]).tobytes()
    return Tensor(dtype, tuple(array.shape), data)
