"""Writes weights files byte by byte, sound and broken, without the library that is compared against."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from math import prod
from pathlib import Path

from hubctl.adapter.header import ITEM_BYTES

Shapes = Mapping[str, tuple[int, ...]]


def container(header: object, body: bytes = b"") -> bytes:
    """A file with that header (JSON text, or a value to be written as JSON)."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def weights(shapes: Shapes, *, dtype: str = "F32", metadata: Mapping[str, str] | None = None) -> bytes:
    """A sound file: tensors of zeros with those shapes."""
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata is not None else {}
    position = 0
    for name, shape in shapes.items():
        end = position + prod(shape) * ITEM_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    return container(header, bytes(position))


def hollow(
    path: Path, shapes: Shapes, *, dtype: str = "F16", metadata: Mapping[str, str] | None = None
) -> None:
    """Write a sound file of any size that takes no space: a hole where the tensors would be."""
    header: dict[str, object] = {}
    position = 0
    for name, shape in shapes.items():
        end = position + prod(shape) * ITEM_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    head = container(header)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + position)


def pair(module: str, *, rank: int = 2, ins: int = 4, outs: int = 6) -> dict[str, tuple[int, ...]]:
    """The two tensors of one LoRA layer."""
    return {f"{module}.lora_A.weight": (rank, ins), f"{module}.lora_B.weight": (outs, rank)}


def diffusers_folder(folder: Path, shapes: Shapes, settings: Mapping[str, object] | None = None) -> Path:
    """An adapter folder as diffusers lays it out; `settings` become `lora_adapter_metadata`."""
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {"lora_adapter_metadata": json.dumps(settings)} if settings is not None else None
    (folder / "pytorch_lora_weights.safetensors").write_bytes(weights(shapes, metadata=metadata))
    return folder


def peft_folder(folder: Path, shapes: Shapes, config: object) -> Path:
    """An adapter folder as peft lays it out."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    prefixed = {f"base_model.model.{name}": shape for name, shape in shapes.items()}
    (folder / "adapter_model.safetensors").write_bytes(weights(prefixed))
    return folder
