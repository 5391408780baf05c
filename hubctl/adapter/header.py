"""Reads safetensors headers, with caps, and looks for NaN and infinity in the bytes behind them.

The format: an 8-byte little-endian length, that many bytes of JSON, then the tensors' bytes
(https://github.com/huggingface/safetensors#format). Adapters come from strangers, so everything is
checked before it is believed.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from functools import partial
from io import FileIO
from math import prod
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from hubctl.errors import AdapterError

MAX_HEADER_BYTES = 4 << 20
MAX_TENSORS = 20_000
READ_BYTES = 4 << 20
"""A multiple of every item's size."""

ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip

# Exponent bits within the highest 16 bits of each float: all ones means NaN or infinity (IEEE 754).
# In the highest 8 of an 8-bit float; E4M3 has no infinity and one NaN, all ones (https://arxiv.org/abs/2209.05433).
_EXPONENT = {"F64": 0x7FF0, "F32": 0x7F80, "BF16": 0x7F80, "F16": 0x7C00, "F8_E5M2": 0x7C, "F8_E4M3": 0x7F}
# For each mask: the highest bytes of a float that rule NaN and infinity out by themselves. Nearly all do.
_ORDINARY = {
    mask: bytes(byte for byte in range(256) if byte & (mask >> 8 or mask) != (mask >> 8 or mask))
    for mask in _EXPONENT.values()
}


class TensorInfo(NamedTuple):
    """One entry of the header; `start` and `end` are byte offsets in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """A checked header: tensors by name, and the free-form metadata."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]


def read_header(path: Path) -> Header:
    """Read and check the header of `path` without touching its tensors.

    Raises:
        AdapterError: not safetensors, too large a header, too many tensors, duplicate keys, unknown dtypes,
            or offsets that overlap, leave gaps or run past the end.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            prefix = file.read(8)
            (length,) = struct.unpack("<Q", prefix) if len(prefix) == 8 else (0,)
            if not 2 <= length <= size - 8:
                _refuse(path, "it is not a safetensors file")
            if length > MAX_HEADER_BYTES:
                _refuse(path, f"its header has {length:,} bytes (limit {MAX_HEADER_BYTES:,})")
            raw = file.read(length)
    except OSError as error:
        raise AdapterError(f"cannot read {path}: {error.strerror}") from error
    return parse_header(raw, size_bytes=size, path=path)


def parse_header(raw: bytes, *, size_bytes: int, path: Path) -> Header:
    """Check the header's JSON text `raw` of a file of `size_bytes`; `path` is only named in errors."""
    try:
        # Stricter than json is by itself, as other readers are: it takes UTF-16 (of bytes), NaN, and -0 as 0.
        data = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=partial(_unique, path),
            parse_int=_integer,
            parse_constant=_no_json,
        )
    except (ValueError, RecursionError):
        _refuse(path, "it is not a safetensors file (its header is not JSON)")
    if not isinstance(data, dict):
        _refuse(path, "its header is not a table")
    metadata = data.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        _refuse(path, "its metadata is not a table of strings")
    if len(data) > MAX_TENSORS:
        _refuse(path, f"it has {len(data):,} tensors (limit {MAX_TENSORS:,})")
    origin = 8 + len(raw)
    tensors = {name: _tensor(name, entry, origin, path) for name, entry in data.items()}
    position = origin
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if tensor.start != position:
            _refuse(path, f"the bytes of '{name}' overlap others or leave a gap")
        position = tensor.end
    if position != size_bytes:
        _refuse(path, f"it is cut short or has extra bytes ({size_bytes:,} instead of {position:,})")
    return Header(tensors, metadata)


def non_finite(path: Path, header: Header) -> list[str]:
    """Names of the tensors of `path` that hold a NaN or an infinity."""
    # One buffer for all, small enough to stay in the processor's cache: fresh memory costs more than reading.
    buffer = bytearray(READ_BYTES)
    with path.open("rb", buffering=0) as file:
        return [
            name
            for name, tensor in header.tensors.items()
            if tensor.dtype in _EXPONENT and not _is_finite(file, tensor, buffer)
        ]


def _is_finite(file: FileIO, tensor: TensorInfo, buffer: bytearray) -> bool:
    mask, item = _EXPONENT[tensor.dtype], ITEM_BYTES[tensor.dtype]
    file.seek(tensor.start)
    left = tensor.end - tensor.start
    while left:
        part = memoryview(buffer)[: min(left, len(buffer))]
        _fill(file, part)
        left -= len(part)
        if not buffer[item - 1 : len(part) : item].translate(None, _ORDINARY[mask]):
            continue
        words = part.cast("H") if item > 1 else part  # 16 bits each, low first
        step = max(item // 2, 1)
        # A set of at most 65,536 values, filled at C speed, instead of a Python loop over millions.
        if any(high & mask == mask for high in set(words[step - 1 :: step])):
            return False
    return True


def _fill(file: FileIO, part: memoryview) -> None:
    while part:
        count = file.readinto(part)
        if not count:
            raise AdapterError(f"{file.name} became shorter while it was read")
        part = part[count:]


def _tensor(name: str, entry: Any, origin: int, path: Path) -> TensorInfo:
    if not name.isprintable():
        _refuse(path, f"the name {name[:80]!a} has characters that no layer's name has")
    try:
        dtype, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        numbers = [*shape, start, end]
        known = ITEM_BYTES[dtype]
    except (KeyError, TypeError, ValueError):
        _refuse(path, f"the entry of '{name[:80]}' is malformed")
    if (
        type(shape) is not list
        or len(shape) > 8
        or set(map(type, numbers)) != {int}
        or not 0 <= min(numbers) <= max(numbers) < 1 << 48
    ):
        _refuse(path, f"the entry of '{name[:80]}' has impossible numbers")
    if prod(shape) * known != end - start:
        _refuse(path, f"'{name[:80]}' has {end - start:,} bytes, its shape says {prod(shape) * known:,}")
    return TensorInfo(dtype, tuple(shape), origin + start, origin + end)


def _unique(path: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        _refuse(path, "its header names a key twice")
    return table


def _integer(text: str) -> float:
    return -0.0 if text == "-0" else int(text)


def _no_json(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON")


def _refuse(path: Path, why: str) -> NoReturn:
    raise AdapterError(f"{path.name} is refused: {why}", hint="save the adapter again with diffusers or peft")
