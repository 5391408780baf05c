"""Tensors out of a safetensors file whose header has been checked.

The library's own `get_tensor` (safetensors 0.8.0, for torch) loses two Python objects with every call: 60 kB
for each time that an adapter of SDXL is loaded, in a process that loads them for months.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from hubctl.adapter.header import Header
from hubctl.errors import AdapterError

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


@contextmanager
def open_tensors(path: Path, header: Header) -> Iterator[Callable[[str], torch.Tensor]]:
    """A function that reads the tensor of a name into memory of its own.

    Raises:
        AdapterError: the file has become shorter than its header says.
    """
    with path.open("rb") as file:

        def read(name: str) -> torch.Tensor:
            tensor = header.tensors[name]
            data = bytearray(tensor.end - tensor.start)
            file.seek(tensor.start)
            if file.readinto(data) < len(data):
                raise AdapterError(f"{path.name} was cut short while it was read")
            if not data:  # torch makes no tensor of an empty buffer
                return torch.empty(tensor.shape, dtype=_DTYPES[tensor.dtype])
            return torch.frombuffer(data, dtype=_DTYPES[tensor.dtype]).view(tensor.shape)

        yield read
