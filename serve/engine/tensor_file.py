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
    """A function that gives the tensor of a name: a part of one buffer, so copy what is to outlive the rest.

    Raises:
        AdapterError: the file has become shorter than its header says.
    """
    begin = min((tensor.start for tensor in header.tensors.values()), default=0)
    size = max((tensor.end for tensor in header.tensors.values()), default=0) - begin
    data = torch.empty(size, dtype=torch.uint8)
    with path.open("rb") as file:
        file.seek(begin)
        if file.readinto(memoryview(data.numpy())) < size:  # type: ignore[arg-type]
            raise AdapterError(f"{path.name} was cut short while it was read")

    storage = data.untyped_storage()

    def read(name: str) -> torch.Tensor:
        tensor = header.tensors[name]
        dtype = _DTYPES[tensor.dtype]
        start, end = tensor.start - begin, tensor.end - begin
        # A header of odd length, or a tensor of odd size before, puts numbers where no processor wants them.
        if start % dtype.itemsize:
            return data[start:end].clone().view(dtype).view(tensor.shape)
        # Half the time of a slice and two views, which matters for the thousand tensors of a large adapter.
        part: torch.Tensor = torch.empty(0, dtype=dtype).set_(  # type: ignore[call-overload]
            storage, start // dtype.itemsize, tensor.shape
        )
        return part

    yield read
