"""The one gate in front of push, pull and the server: a sound adapter, and one that fits its base."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from hubctl.adapter.base_shapes import BaseShapes, read_base_shapes
from hubctl.adapter.check import Fit, check_fit, looks_like
from hubctl.adapter.header import non_finite
from hubctl.adapter.layout import PEFT_COMPONENT, AdapterLayout, read_layout
from hubctl.base_models import BaseModel
from hubctl.errors import AdapterError, AdapterMismatchError
from hubctl.families import MAX_CLASSES

PICKLES = frozenset({".bin", ".ckpt", ".pkl", ".pickle", ".pt", ".pth", ".joblib", ".npy", ".npz"})
CODE = frozenset({".py", ".pyc", ".so", ".dll", ".exe", ".sh"})

MAX_RANK = 1024
MAX_SCALE = 1e4
MAX_BYTES = 4 << 30


def gate(folder: Path, base: BaseModel | None) -> AdapterLayout:
    """Let the adapter in `folder` through, or say why not.

    With a base, every part must fit it; without one only the adapter itself is judged.

    Raises:
        AdapterError: pickles or code in the folder, a broken or foreign format, NaN or infinity, or a rank,
            scale or size beyond the limits.
        AdapterMismatchError: it is sound but does not fit `base`.
    """
    layout = gate_headers(folder)
    if bad := non_finite(layout.weights_file, layout.header):
        raise AdapterError(
            f"{len(bad)} of {len(layout.header.tensors)} tensors hold NaN or infinity, '{bad[0]}' first",
            hint="training diverged: train again with a lower learning rate",
        )
    if layout.tokens and (bad := non_finite(layout.tokens.file, layout.tokens.header)):
        raise AdapterError(
            f"the vectors of its new tokens hold NaN or infinity, in '{bad[0]}'",
            hint="training diverged: train again with a lower --token-lr",
        )
    if base is not None:
        refuse_misfit(layout, base.id, read_base_shapes(base.path, base.family))
    return layout


def gate_headers(folder: Path) -> AdapterLayout:
    """The part of `gate` that reads no values and needs no base: for who looks at the values anyway."""
    refuse_unsafe_files(folder)
    layout = read_layout(folder)
    refuse_excess(layout)
    return layout


def refuse_unsafe_files(folder: Path) -> None:
    """Raise `AdapterError` when `folder` holds pickles or code: adapters carry neither."""
    inside = [name for _, folders, files in os.walk(folder) for name in folders + files]
    for name in sorted(inside if folder.is_dir() else [folder.name]):
        suffix = Path(name).suffix.lower()
        kind = "a pickle, which can run code when loaded" if suffix in PICKLES else None
        kind = kind or ("code" if suffix in CODE else None)
        if kind:
            raise AdapterError(
                f"{name} is {kind}",
                hint="keep safetensors weights only, and remove this file",
            )


def refuse_unsaid_encoder(layout: AdapterLayout, base_id: str, shapes: BaseShapes) -> None:
    """Raise `AdapterMismatchError` when peft's folder may be for either CLIP of a base with two of one class.

    SD3 has such ones. peft names the class alone, which is SDXL's second text encoder elsewhere.
    """
    if layout.dialect != "peft" or PEFT_COMPONENT in layout.header.metadata:
        return
    of_second = [module for module in layout.modules if module.component == "text_encoder_2"]
    of_first = [replace(module, component="text_encoder") for module in of_second]
    if of_first and check_fit(of_first, (), shapes).fits:
        also = " and text_encoder_2" if check_fit(of_second, (), shapes).fits else ""
        raise AdapterMismatchError(
            f"the adapter fits text_encoder{also} of {base_id}, and does not say which it is for",
            hint="say it: hubctl convert DIR --to diffusers -o OUT --component text_encoder"
            + (" (or --component text_encoder_2)" if also else ""),
        )


def refuse_misfit(layout: AdapterLayout, base_id: str, shapes: BaseShapes) -> Fit:
    """Raise `AdapterMismatchError` when `layout` does not fit the base's shapes; else return the verdict.

    Raises:
        AdapterError: it fits, and has more classes than labels can name.
    """
    refuse_unsaid_encoder(layout, base_id, shapes)
    fit = check_fit(layout.modules, layout.heads, shapes, layout.tokens)
    if fit.fits:
        _refuse_excess_classes(layout, shapes)
        return fit
    like = looks_like(layout.modules)
    share = f"{fit.matched} of {fit.total} parts fit"
    raise AdapterMismatchError(
        f"the adapter does not fit {base_id} ({share}): {fit.problems[0]}",
        hint=f"its shapes look like {like}: name that base" if like else "name the base it was trained on",
    )


def _refuse_excess_classes(layout: AdapterLayout, shapes: BaseShapes) -> None:
    """Of heads that fit, the classifier alone may be as wide as it likes: it has an output for each class."""
    own = shapes.get("model", {})
    classes = max((head.shape[0] for head in layout.heads if head.shape != own[head.name]), default=0)
    if classes > MAX_CLASSES:
        raise AdapterError(
            f"the adapter has {classes} classes (limit {MAX_CLASSES})", hint="train it on fewer classes"
        )


def refuse_excess(layout: AdapterLayout) -> None:
    """Raise `AdapterError` when the file, a rank or a scale is larger than any honest adapter's."""
    size = layout.weights_file.stat().st_size
    if size > MAX_BYTES:
        raise AdapterError(f"{layout.weights_file.name} has {size:,} bytes (limit {MAX_BYTES:,})")
    for m in layout.modules:
        if m.rank > MAX_RANK:
            raise AdapterError(f"'{m.component}.{m.module}' has rank {m.rank:,} (limit {MAX_RANK:,})")
        if abs(m.scale) > MAX_SCALE:
            raise AdapterError(f"'{m.component}.{m.module}' has scale {m.scale:g} (limit {MAX_SCALE:g})")
