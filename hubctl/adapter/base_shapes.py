"""The shapes of a base model's tensors, from its safetensors headers alone."""

from __future__ import annotations

import json
from pathlib import Path

from hubctl.adapter.header import read_header
from hubctl.adapter.names import current_name, renames
from hubctl.errors import AdapterError, InputError
from hubctl.families import Family

BaseShapes = dict[str, dict[str, tuple[int, ...]]]
"""Component → tensor name (current spelling) → shape."""


def read_base_shapes(folder: Path, family: Family) -> BaseShapes:
    """Shapes of every tensor of the components that adapters may change; no weights are read.

    Raises:
        InputError: a component has no safetensors weights.
    """
    shapes: BaseShapes = {}
    for component in family.components:
        where = folder if component == "model" else folder / component
        if not where.is_dir():
            continue  # SD3 and Flux run without some text encoders
        files = _weight_files(where)
        if not files:
            raise InputError(f"{where} has no safetensors weights", hint="save the base with safetensors")
        try:
            headers = [read_header(file) for file in files]
        except AdapterError as error:
            raise InputError(f"the base model is broken: {error.message}") from error
        tensors = {name: tensor for header in headers for name, tensor in header.tensors.items()}
        rules = renames(component, tensors)
        shapes[component] = {current_name(name, rules): tensor.shape for name, tensor in tensors.items()}
    return shapes


def _weight_files(folder: Path) -> list[Path]:
    """One full set of weights: the sharded index's files, else the plain file, else a variant (fp16)."""
    for index in sorted(folder.glob("*.safetensors.index.json")):
        return [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    for name in ("model.safetensors", "diffusion_pytorch_model.safetensors"):
        if (folder / name).is_file():
            return [folder / name]
    return sorted(folder.glob("*.safetensors"))[:1]
