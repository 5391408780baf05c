"""An adapter in memory: its layers and heads, whatever dialect it was saved in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hubctl.adapter.comfyui import is_comfyui, read_comfyui
from hubctl.adapter.header import Header, read_header
from hubctl.adapter.kohya import is_kohya, read_kohya
from hubctl.adapter.layers import Layer, Whole
from hubctl.adapter.layout import (
    CONFIG_PEFT,
    WEIGHTS_DIFFUSERS,
    WEIGHTS_PEFT,
    AdapterLayout,
    LoraModule,
    read_layout,
)
from hubctl.adapter.names import current_name, renames
from hubctl.adapter.new_tokens import is_tokens_file
from hubctl.adapter.tensors import read_tensors, without_data
from hubctl.errors import AdapterError, NotFoundError

PARTS = ("text_encoder", "text_encoder_2", "transformer", "unet")
"""The parts of pipelines that LoRA changes."""

Dialect = Literal["diffusers", "peft", "kohya"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Adapter:
    """Everything that an adapter's weights say."""

    dialect: Dialect
    layers: tuple[Layer, ...]
    """Sorted by component and module."""
    heads: tuple[Whole, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    """The free-form part of the weights file's header."""
    config: Mapping[str, Any] | None = None
    """adapter_config.json, where the dialect has it."""

    @property
    def components(self) -> tuple[str, ...]:
        """The parts of a pipeline that it changes, sorted; `model` is a whole transformers model."""
        named = {layer.component for layer in self.layers} | ({"model"} if self.heads else set())
        return tuple(sorted(named))


def read_adapter(path: Path, component: str | None = None) -> Adapter:
    """Read the adapter in the folder or weights file `path` into memory.

    Args:
        path: A folder, a weights file, or a folder of peft folders named by the component.
        component: What of a pipeline it is for, if it is peft's, which need not say so.

    Raises:
        NotFoundError: there is nothing at `path`.
        AdapterError: it is no adapter, or one of a kind that is not LoRA (named).
    """
    if not path.exists():
        raise NotFoundError(f"no folder or file {path}", hint="name an adapter's folder or weights file")
    if parts := _peft_parts(path):
        return _joined([read_adapter(part, part.name) for part in parts])
    if found := kohya_file(path):
        weights, header = found
        layers = read_kohya(read_tensors(weights, header), weights.name)
        return Adapter(dialect="kohya", layers=layers, metadata=header.metadata)
    if (file := _only_file(path)) and is_comfyui(header := read_header(file)):
        layers = read_comfyui(read_tensors(file, header), file.name)
        return Adapter(dialect="diffusers", layers=layers, metadata=header.metadata)
    layout = read_layout(path)
    tensors = read_tensors(layout.weights_file, layout.header)

    def place(stated: str) -> str:
        return component if component and layout.dialect == "peft" else stated

    layers = tuple(
        Layer(
            component=place(m.component),
            module=current_name(m.module, renames(place(m.component), ())),
            a=tensors[m.a_key],
            b=tensors[m.b_key],
            alpha=m.alpha,
            rslora=not math.isclose(m.scale * m.rank, m.alpha),
            embedding=m.embedding,
            magnitude=tensors[m.magnitude_key] if m.magnitude_key else None,
        )
        for m in layout.modules
    )
    heads = tuple(Whole(module=h.module, name=h.name, tensor=tensors[h.key]) for h in layout.heads)
    return Adapter(
        dialect=layout.dialect,
        layers=tuple(sorted(layers, key=lambda layer: layer.where)),
        heads=heads,
        metadata=layout.header.metadata,
        config=layout.peft_config,
    )


def kohya_file(path: Path) -> tuple[Path, Header] | None:
    """The weights file in the folder (or file) `path` with its header, if it is kohya's."""
    weights = _only_file(path)
    if weights is None or not is_kohya(header := read_header(weights)):
        return None
    return weights, header


def kohya_layout(weights: Path, header: Header) -> AdapterLayout:
    """The layers of kohya's file `weights`, by its header alone; alphas are values, and stand as the rank.

    Raises:
        AdapterError: as `read_kohya`.
    """
    modules = tuple(
        LoraModule(
            component=layer.component,
            module=layer.module,
            a_key="",
            b_key="",
            a_shape=layer.a.shape,
            b_shape=layer.b.shape,
            rank=layer.rank,
            alpha=float(layer.rank),
            scale=1.0,
        )
        for layer in read_kohya(without_data(header), weights.name)
    )
    return AdapterLayout(
        dialect="kohya", weights_file=weights, header=header, modules=modules, heads=(), peft_config=None
    )


def _only_file(path: Path) -> Path | None:
    """The weights file whose dialect only its keys can tell."""
    if path.is_file():
        return None if path.name == WEIGHTS_PEFT else path
    if (path / WEIGHTS_DIFFUSERS).is_file():
        return path / WEIGHTS_DIFFUSERS
    if (path / WEIGHTS_PEFT).is_file():
        return None
    files = sorted(file for file in path.glob("*.safetensors") if not is_tokens_file(file.name))
    return files[0] if len(files) == 1 else None


def _peft_parts(path: Path) -> list[Path]:
    """Subfolders that are peft's and named as parts of a pipeline, in a folder without weights itself."""
    if not path.is_dir() or any(not is_tokens_file(file.name) for file in path.glob("*.safetensors")):
        return []
    return [path / name for name in PARTS if (path / name / CONFIG_PEFT).is_file()]


def _joined(parts: list[Adapter]) -> Adapter:
    if any(part.heads for part in parts):
        raise AdapterError("a head is saved for one component of several", hint="name one of the subfolders")
    layers = (layer for part in parts for layer in part.layers)
    return Adapter(
        dialect="peft",
        layers=tuple(sorted(layers, key=lambda layer: layer.where)),
        config={k: v for k, v in (parts[0].config or {}).items() if k != "auto_mapping"},
    )
