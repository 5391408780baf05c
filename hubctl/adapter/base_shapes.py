"""The shapes of a base model's tensors, from its safetensors headers alone."""

from __future__ import annotations

import json
from pathlib import Path

from hubctl.adapter.header import read_header
from hubctl.adapter.names import current_name, renames
from hubctl.errors import AdapterError, InputError
from hubctl.families import Family

Shape = tuple[int, ...]
BaseShapes = dict[str, dict[str, Shape]]
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
        found = {name: tensor.shape for name, tensor in tensors.items()}
        found = _under_a_linear_head(found, where) if family.headless else found
        rules = renames(component, found)
        shapes[component] = {current_name(name, rules): shape for name, shape in found.items()}
    return shapes


def _under_a_linear_head(tensors: dict[str, Shape], folder: Path) -> dict[str, Shape]:
    """What `hubctl.modeling` makes of a vision transformer's own tensors: a head of no classes beside it."""
    mark = "embeddings.cls_token"
    token = next((name for name in tensors if name.endswith(mark)), None)
    if token is None:
        raise InputError(f"the weights in {folder} are no vision transformer: they lack '{mark}'")
    prefix, width = token.removesuffix(mark), tensors[token][-1]
    backbone = {
        f"backbone.{name.removeprefix(prefix)}": shape
        for name, shape in tensors.items()
        if name.startswith(prefix) and not name.startswith((f"{prefix}pooler.", f"{prefix}classifier."))
    }
    return backbone | {"classifier.weight": (0, width, 1, 1), "classifier.bias": (0,)}


def _weight_files(folder: Path) -> list[Path]:
    """One full set of weights: the sharded index's files, else the plain file, else a variant (fp16)."""
    for index in sorted(folder.glob("*.safetensors.index.json")):
        return [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    for name in ("model.safetensors", "diffusion_pytorch_model.safetensors"):
        if (folder / name).is_file():
            return [folder / name]
    return sorted(folder.glob("*.safetensors"))[:1]
