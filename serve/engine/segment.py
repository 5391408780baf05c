"""Segmentation: LoRA rows mixed, modules that are replaced whole per group of samples, one forward for all.

Shapes: N images in a forward, C classes, h x w logits, H x W pixels as the base takes them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import PreTrainedModel

from hubctl.adapter.layout import AdapterLayout
from hubctl.adapter.package import read_manifest
from hubctl.base_models import BaseModel, refuse_excess_classes
from hubctl.errors import AdapterError, AdapterMismatchError, InputError
from hubctl.modeling.loading import load_segmenter
from hubctl.modeling.picture_input import picture_input
from hubctl.modeling.quantize import quantize
from serve.engine.compiled import Compiled
from serve.engine.config import EngineConfig
from serve.engine.core import Core, Session, pick_device
from serve.engine.host_rows import refuse_non_finite
from serve.engine.labels import read_labels
from serve.engine.requests import (
    Cancelled,
    EngineInfo,
    Fetch,
    ImageRequest,
    ImageResult,
    LoraUse,
    SegmentRequest,
    SegmentResult,
)
from serve.engine.row_pool import RowPool
from serve.engine.shared_module import CallShape, SharedModule
from serve.engine.tensor_file import open_tensors
from serve.engine.threads import one_core

_AUXILIARY = "auxiliary_head"  # helps training; the logits do not depend on it


class HeadSwitch(nn.Module):
    """Stands where a base module was: each sample takes its adapter's module, or the base's."""

    def __init__(self, base: nn.Module, path: str, pool: RowPool) -> None:
        super().__init__()
        self.base, self._path, self._pool = base, path, pool

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run each group of samples with its own module; see `_together` for outputs."""
        mix = self._pool.mix
        if mix is None or not any(self._path in heads for heads in mix.heads):
            return self.base(*args, **kwargs)
        groups: dict[int, tuple[nn.Module, list[int]]] = {}
        for sample, heads in enumerate(mix.heads):
            module = heads.get(self._path, self.base)
            groups.setdefault(id(module), (module, []))[1].append(sample)
        outputs = []
        try:
            for module, samples in groups.values():
                self._pool.mix = mix.part(samples)
                outputs.append(module(*_select(args, samples), **_select(kwargs, samples)))
        finally:
            self._pool.mix = mix
        order = torch.tensor([sample for _, samples in groups.values() for sample in samples])
        return _together(outputs, order.argsort())


class SegmentEngine:
    """Labels from one base; see `requests.Engine` for who may call what."""

    def __init__(self, base: BaseModel, config: EngineConfig, fetch: Fetch) -> None:
        """Load the base onto its device."""
        if config.offload:
            raise InputError(
                f"engine: offload is for bases of several modules, {base.id} is one", hint="leave it out"
            )
        refuse_excess_classes(base)
        device, dtype = pick_device(config, base.family)
        self._input = picture_input(base.path)
        with one_core():
            model: Any = load_segmenter(base.path, dtype=dtype, local_files_only=True)
            for name in _backbones(model):
                quantize(getattr(model, name), config.quantize)
            self._model = model.to(device).eval()
        self._device, self._dtype = device, dtype
        self._pristine = {name: copy.deepcopy(module) for name, module in _outside_backbone(model).items()}
        self._core = Core(base, config, fetch, {"model": self._model}, self._read_heads)
        if config.compile != "off":
            for name in _backbones(model):
                backbone = getattr(model, name)
                targets = base.family.default_targets
                Compiled(backbone, self._core.pool, config.compile, targets=targets)
        self.owner = self._core.owner
        """Counts of calls and forwards, for measurements."""
        for path in sorted(self._pristine, key=lambda path: path.count("."), reverse=True):
            parent, _, name = path.rpartition(".")
            above = self._model.get_submodule(parent)
            setattr(above, name, HeadSwitch(getattr(above, name), path, self._core.pool))
        setattr(self._model, _AUXILIARY, None)
        shape = CallShape(stage=0, max_rows=config.max_batch_rows)
        self._shared = SharedModule(self.owner, "model", self._model, shape)
        self._labels: dict[int, str] = {}
        """Of the base's own classes; none where every adapter brings its head."""
        if not base.family.headless:
            named = {int(i): str(name) for i, name in model.config.id2label.items()}
            self._labels = {i: named.get(i, f"class {i}") for i in range(model.config.num_labels)}

    def generate(self, request: ImageRequest, cancelled: Cancelled = None) -> ImageResult:
        """Refuse: this base labels images."""
        raise InputError(
            f"{self._core.base.id} segments images, it does not make them",
            hint="name a text-to-image base or adapter",
            param="model",
        )

    def segment(self, request: SegmentRequest, cancelled: Cancelled = None) -> SegmentResult:
        """Label an image; see `Engine.segment`."""
        pixels = self._pixels(request.image)
        uses = (request.adapter,) if request.adapter else ()
        with self._core.session(uses, request.timeout_s, cancelled, tenant=request.tenant) as session:
            logits, id2label = self._logits(session, pixels)
            labels, scores = read_labels(logits, request.image.shape[:2])
            return SegmentResult(
                labels=labels, scores=scores, id2label=dict(id2label), timings=session.timings()
            )

    def warm_up(self) -> None:
        """Label an image, so that the first request finds kernels chosen and memory taken."""
        if not self._labels:  # a backbone alone has no head to label with
            return
        pixels = self._pixels(np.zeros((64, 64, 3), np.uint8))
        for rows in (1, 2):  # one row is a graph of its own to torch.compile
            with self._core.session((), None) as session:
                session.client.call(self._shared, (pixels.repeat(rows, 1, 1, 1),), {})

    def logits(self, request: SegmentRequest) -> torch.Tensor:
        """What `segment` starts from: (C, h, w)."""
        uses = (request.adapter,) if request.adapter else ()
        return self.logits_of(self._pixels(request.image), uses, request.timeout_s)

    def logits_of(
        self, pixels: torch.Tensor, uses: Sequence[LoraUse], timeout_s: float | None = None
    ) -> torch.Tensor:
        """The same from prepared pixels (1, 3, H, W)."""
        with self._core.session(uses, timeout_s) as session:
            return self._logits(session, pixels)[0]

    def info(self) -> EngineInfo:
        """The state now."""
        return self._core.info()

    def close(self) -> None:
        """End the engine."""
        self._core.close()

    def _logits(self, session: Session, pixels: torch.Tensor) -> tuple[torch.Tensor, Mapping[int, str]]:
        """Logits (C, h, w) of the request's own classes, and the classes' names."""
        id2label = (session.adapters[0].labels if session.adapters else None) or self._labels
        if not id2label:
            raise InputError(
                f"{self._core.base.id} is a backbone, which knows no classes of its own",
                hint="name an adapter that was trained with its head",
                param="model",
            )
        output = session.client.call(self._shared, (pixels,), {})
        # Behind its own classes are those of other samples in the same forward.
        return output.logits[0, : len(id2label)], id2label

    def _pixels(self, image: np.ndarray) -> torch.Tensor:
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise InputError("the image is not RGB with 8 bits", param="image")
        with one_core():
            squeezed = torch.tensor(self._input.squeeze(Image.fromarray(image)))
            pixels = self._input.normalise(squeezed.permute(2, 0, 1)[None].float() / 255)
            return pixels.to(self._device, self._dtype)

    def _read_heads(
        self, layout: AdapterLayout, folder: Path
    ) -> tuple[Mapping[str, nn.Module], Mapping[int, str] | None]:
        """Build the modules that an adapter replaces whole, and name its classes."""
        heads: dict[str, nn.Module] = {}
        classes = self._model.config.num_labels
        saved = {head.name for head in layout.heads}
        with open_tensors(layout.weights_file, layout.header) as read:
            for tensor in layout.heads:
                path = tensor.module
                if path.partition(".")[0] == _AUXILIARY:
                    continue
                if path not in self._pristine:
                    raise AdapterMismatchError(f"this base cannot replace '{path}' per adapter")
                if path not in heads:
                    heads[path] = copy.deepcopy(self._pristine[path])
                value = read(tensor.key)
                refuse_non_finite(layout, value)
                value = value.to(self._device, copy=True)
                if _replace(heads[path], tensor.name.removeprefix(path + "."), value):
                    classes = len(value)
        for path, head in heads.items():
            missing = {f"{path}.{name}" for name in head.state_dict()} - saved
            # peft saves buffers too; an old file without the counter of batches is as good.
            if missing := {name for name in missing if not name.endswith("num_batches_tracked")}:
                raise AdapterError(f"the adapter replaces '{path}' but lacks '{min(missing)}'")
        return heads, _label_names(folder, classes, self._labels) if heads or self._labels else None


def _backbones(model: Any) -> set[str]:
    """The children that are a transformers model of their own; necks and heads are plain modules."""
    return {name for name, child in model.named_children() if isinstance(child, PreTrainedModel)}


def _outside_backbone(model: Any) -> dict[str, nn.Module]:
    """Modules with weights that are no part of the backbone: what adapters may replace whole."""
    inner = _backbones(model)
    return {
        path: module
        for path, module in model.named_modules()
        if path
        and path.partition(".")[0] not in inner | {_AUXILIARY}
        and not isinstance(module, nn.ModuleList)
        and any(True for _ in module.parameters())
    }


def _replace(head: nn.Module, name: str, value: torch.Tensor) -> bool:
    """Put a tensor into its place; True when that changed the number of classes."""
    path, _, leaf = name.rpartition(".")
    module = head.get_submodule(path)
    old = getattr(module, leaf)
    value = value.to(old.dtype)
    if isinstance(old, nn.Parameter):
        setattr(module, leaf, nn.Parameter(value, requires_grad=False))
    else:
        setattr(module, leaf, value)
    changed = old.shape != value.shape
    if changed and isinstance(module, nn.Conv2d):
        module.out_channels = len(value)
    elif changed and isinstance(module, nn.Linear):
        module.out_features = len(value)
    return changed


def _select(value: Any, samples: Sequence[int]) -> Any:
    """The samples' part of a head's arguments; tensors have the batch first."""
    if isinstance(value, torch.Tensor):
        return value[torch.tensor(samples, device=value.device)]
    if isinstance(value, tuple | list):
        return type(value)(_select(item, samples) for item in value)
    if isinstance(value, dict):
        return {key: _select(item, samples) for key, item in value.items()}
    return value


def _together(outputs: Sequence[Any], order: torch.Tensor) -> Any:
    """One output of what each group of samples gave, the samples in `order`.

    Outputs are tensors (n, C, ...), where groups with fewer classes are padded with zeros, or lists of such.
    """
    first = outputs[0]
    if isinstance(first, tuple | list):
        return type(first)(_together(column, order) for column in zip(*outputs, strict=True))
    most = max(output.shape[1] for output in outputs)
    padded = [
        torch.cat([output, output.new_zeros(len(output), most - output.shape[1], *output.shape[2:])], dim=1)
        for output in outputs
    ]
    return torch.cat(padded)[order.to(first.device)]


def _label_names(folder: Path, classes: int, base: Mapping[int, str]) -> Mapping[int, str]:
    """Names of an adapter's classes: its manifest's, the base's where they can be meant, or numbers."""
    manifest = read_manifest(folder)
    named = manifest.data.get("labels") if manifest else None
    if not isinstance(named, dict):
        named = base if classes == len(base) else {}
    names = {str(number): str(name) for number, name in named.items()}
    return {i: names.get(str(i), f"class {i}") for i in range(classes)}
