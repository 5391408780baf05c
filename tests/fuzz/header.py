"""Fuzzing the safetensors header reader: what it takes, the library takes too, with the same tensors."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["hubctl.adapter.header"]):
    from hubctl.adapter.header import parse_header

from safetensors import deserialize

from hubctl.errors import AdapterError

HERE = Path("fuzzed.safetensors")


def read(data: bytes) -> None:
    """One input: the JSON of a header; as many bytes as it speaks of are thought behind it."""
    body = tensor_bytes(data)
    try:
        ours = parse_header(data, size_bytes=8 + len(data) + body, path=HERE)
    except AdapterError:
        return
    if body < 1 << 20:
        theirs: Any = dict(
            deserialize(  # type: ignore[no-untyped-call]
                len(data).to_bytes(8, "little") + data + bytes(body)
            )
        )
        assert {name: list(tensor.shape) for name, tensor in ours.tensors.items()} == {
            name: tensor["shape"] for name, tensor in theirs.items()
        }


def tensor_bytes(data: bytes) -> int:
    """Where the last tensor ends, if the header says so."""
    try:
        return max(int(entry["data_offsets"][1]) for entry in json.loads(data).values() if "dtype" in entry)
    except Exception:
        return 0


if __name__ == "__main__":
    atheris.Setup(sys.argv, read)
    atheris.Fuzz()
