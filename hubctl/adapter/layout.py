"""What an adapter's weights file holds: LoRA modules and whole heads, in diffusers' or peft's spelling.

diffusers: `pytorch_lora_weights.safetensors`, keys `unet.<module>.lora_A.weight`; rank and alpha in the
header's `lora_adapter_metadata` (alpha = rank where it is missing: diffusers' `get_peft_kwargs`).
peft: `adapter_model.safetensors`, keys `base_model.model.<module>.lora_A.weight`; rank, alpha and the whole
modules that were trained (`modules_to_save`) in `adapter_config.json`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NoReturn

from hubctl.adapter.comfyui import is_comfyui, read_comfyui
from hubctl.adapter.dialect import DIALECTS, recognise
from hubctl.adapter.header import Header, read_header
from hubctl.adapter.kohya import is_kohya, read_kohya
from hubctl.adapter.layers import Layer
from hubctl.adapter.names import Renames, current_name, renames
from hubctl.adapter.new_tokens import NewTokens, is_tokens_file, read_new_tokens
from hubctl.adapter.tensors import without_data
from hubctl.errors import AdapterError

WEIGHTS_DIFFUSERS = "pytorch_lora_weights.safetensors"
WEIGHTS_PEFT = "adapter_model.safetensors"
CONFIG_PEFT = "adapter_config.json"
PEFT_COMPONENT = "component"
"""Metadata of a peft file: the part of a pipeline that it is for, which peft's form has no place for."""

_HUGE = 1e9  # beyond any rank or alpha; NaN and infinity fail the comparison too
_PEFT_PREFIX = "base_model.model."
# diffusers' own scripts still save text encoders in the second form (`convert_state_dict_to_diffusers`).
_HALVES = {
    ".lora_A.weight": "A", ".lora_B.weight": "B",
    ".lora_linear_layer.down.weight": "A", ".lora_linear_layer.up.weight": "B",
    ".lora_embedding_A": "A", ".lora_embedding_B": "B",
    ".lora_magnitude_vector": "M", ".lora_magnitude_vector.weight": "M",
}  # fmt: skip
_COMPONENTS = ("unet", "transformer", "text_encoder_2", "text_encoder")
# What peft writes into `auto_mapping` of a model that it saves.
_PEFT_CLASSES = {
    "UNet2DConditionModel": "unet", "CLIPTextModel": "text_encoder",
    "CLIPTextModelWithProjection": "text_encoder_2",
}  # fmt: skip
# As diffusers calls all of its denoising transformers.
_PEFT_TRANSFORMER = re.compile(r"\w*Transformer[23]DModel")
_PEFT_ALPHA = 8  # of a LoraConfig that does not say
_FOREIGN = ("xlabs", "bfl", "bfl-control", "fal", "comfyui")  # of `dialect.DIALECTS`; the rest by name:
_OTHER_KINDS = {
    ".processor.": "diffusers' attention-processor",
    "hada_": "LoHa", "lokr_": "LoKr", "oft_": "OFT", "dora_scale": "kohya",
    ".lora.down.": "diffusers' older",
}  # fmt: skip
MAX_CONFIG_BYTES = 1 << 20

# Settings of peft's LoraConfig that change the arithmetic, or the base's own weights.
_VARIANTS = {
    "lora_bias": "LoRA with biases", "fan_in_fan_out": "Conv1D", "use_qalora": "QALoRA",
    "use_bdlora": "BD-LoRA", "alora_invocation_tokens": "aLoRA", "arrow_config": "Arrow",
    "kasa_config": "KaSA", "monteclora_config": "MonteCLoRA", "velora_config": "VeLoRA",
    "layer_replication": "layer-replicating", "target_parameters": "parameter-targeting",
    "trainable_token_indices": "token-training", "megatron_config": "Megatron",
}  # fmt: skip
# Others (PiSSA, OLoRA, CorDA, LoftQ) subtract something from the base's weights before training.
_PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraModule:
    """One adapted layer: the output gains `scale * (x @ A^T) @ B^T`."""

    component: str
    """`unet`, `transformer`, `text_encoder`, `text_encoder_2`, or `model` for a whole transformers model."""
    module: str
    """Path of the layer inside the component, as today's libraries spell it."""
    a_key: str
    b_key: str
    a_shape: tuple[int, ...]
    """(rank, in) or, for a convolution, (rank, in, height, width)."""
    b_shape: tuple[int, ...]
    """(out, rank) or (out, rank, 1, 1)."""
    rank: int
    alpha: float
    scale: float
    """alpha / rank, or alpha / sqrt(rank) for rsLoRA (https://arxiv.org/abs/2312.03732)."""
    embedding: bool = False
    """The layer is a table of embeddings: A is (rank, entries), B is (width, rank)."""
    magnitude_key: str | None = None
    """DoRA's magnitudes, one for each output (https://arxiv.org/abs/2402.09353)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadTensor:
    """One tensor of a module that the adapter replaces whole (peft's `modules_to_save`)."""

    module: str
    """Path of the replaced module, as today's libraries spell it."""
    key: str
    name: str
    """Path of the tensor, likewise."""
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterLayout:
    """Everything in an adapter's weights file, understood."""

    dialect: Literal["diffusers", "peft", "kohya"]
    """`read_layout` gives the first two; `kohya_layout` the third, to be compared with bases, not run."""
    weights_file: Path
    header: Header
    modules: tuple[LoraModule, ...]
    heads: tuple[HeadTensor, ...]
    peft_config: dict[str, Any] | None
    tokens: NewTokens | None = None
    """Words of its own; they lie in a file beside the weights."""


def read_layout(path: Path) -> AdapterLayout:
    """Understand the adapter in the folder (or weights file) `path`; reads headers and JSON only.

    Raises:
        AdapterError: no weights, a kind of adapter that hubctl does not run (named), a key without its pair,
            or a rank and shape that contradict each other.
    """
    weights, dialect = find_weights(path)
    header = read_header(weights)
    if dialect == "peft":
        config = read_config(weights.parent / CONFIG_PEFT)
        component = _peft_component(header, config)
        layout = _layout("peft", weights, header, {component: config}, config, component)
    else:
        raw = header.metadata.get("lora_adapter_metadata")
        flat = _parse_json(raw, "lora_adapter_metadata") if raw else {}
        layout = _layout("diffusers", weights, header, _by_component(flat), None)
    return replace(layout, tokens=read_new_tokens(path)) if path.is_dir() else layout


def find_weights(path: Path) -> tuple[Path, Literal["diffusers", "peft"]]:
    """The weights file in the folder (or at) `path`, and whose spelling its name promises."""
    if path.is_file():
        return path, "peft" if path.name == WEIGHTS_PEFT else "diffusers"
    if (path / WEIGHTS_DIFFUSERS).is_file():
        return path / WEIGHTS_DIFFUSERS, "diffusers"
    if (path / WEIGHTS_PEFT).is_file():
        return path / WEIGHTS_PEFT, "peft"
    others = sorted(file for file in path.glob("*.safetensors") if not is_tokens_file(file.name))
    if len(others) == 1:
        return others[0], "diffusers"
    raise AdapterError(
        f"{path} holds {'several' if others else 'no'} safetensors weights",
        hint=f"an adapter folder has one {WEIGHTS_DIFFUSERS} or one {WEIGHTS_PEFT}",
    )


def _layout(
    dialect: Literal["diffusers", "peft"],
    weights: Path,
    header: Header,
    configs: dict[str, dict[str, Any]],
    peft_config: dict[str, Any] | None,
    component: str = "model",
) -> AdapterLayout:
    if peft_config is not None:
        _refuse_variants(peft_config)
    saved = _saved_modules(peft_config or {})
    places = {key: _split(key, dialect, component, header) for key in header.tensors}
    rules = _rules(places.values())
    pairs: dict[tuple[str, str], dict[str, str]] = {}
    heads = []
    for key, (component, name) in places.items():
        saved_as, mark, end = name.rpartition(".lora_")
        if dialect == "diffusers":
            # What peft calls an adapter inside a model; diffusers reads names with it too.
            end = end.replace(".default", "")
        if half := _HALVES.get(mark + end):
            layer = current_name(saved_as, rules[component])
            found = pairs.setdefault((component, layer), {})
            if half in found:
                raise AdapterError(f"'{key[:80]}' and '{found[half][:80]}' are one layer under two names")
            found[half] = key
        elif owner := _owner(name, saved):
            heads.append(
                HeadTensor(
                    module=current_name(owner, rules[component]),
                    key=key,
                    name=current_name(name, rules[component]),
                    shape=header.tensors[key].shape,
                )
            )
        else:
            _refuse_key(key, header)
    for component in {component for component, _ in pairs}:
        _refuse_variants(configs.get(component, {}))
    modules = [
        _module(component, module, halves, header, configs.get(component, {}))
        for (component, module), halves in sorted(pairs.items())
    ]
    if not modules and not heads:
        raise AdapterError(
            f"{weights.name} holds no LoRA weights", hint="train it again, or name another file"
        )
    return AdapterLayout(
        dialect=dialect,
        weights_file=weights,
        header=header,
        modules=tuple(modules),
        heads=tuple(heads),
        peft_config=peft_config,
    )


def _peft_component(header: Header, config: dict[str, Any]) -> str:
    """What a peft file is for: a component of a pipeline if it says so, else a whole model."""
    stated = header.metadata.get(PEFT_COMPONENT)
    mapping = config.get("auto_mapping")
    model = mapping.get("base_model_class") if isinstance(mapping, dict) else None
    if stated in _COMPONENTS:
        return str(stated)
    if _PEFT_TRANSFORMER.fullmatch(str(model)):
        return "transformer"
    return _PEFT_CLASSES.get(str(model), "model")


def _split(key: str, dialect: str, whole: str, header: Header) -> tuple[str, str]:
    if dialect == "peft":
        if not key.startswith(_PEFT_PREFIX):
            _refuse_key(key, header)
        return whole, key.removeprefix(_PEFT_PREFIX)
    component, _, name = key.partition(".")
    if component not in _COMPONENTS:
        _refuse_key(key, header)
    return component, name


def _rules(places: Collection[tuple[str, str]]) -> dict[str, Renames]:
    """How each component's names become current ones."""
    return {
        component: renames(component, [name for other, name in places if other == component])
        for component in {component for component, _ in places}
    }


def _module(
    component: str, module: str, halves: dict[str, str], header: Header, config: dict[str, Any]
) -> LoraModule:
    where = f"{component}.{module}"
    if not ("A" in halves and "B" in halves):
        raise AdapterError(
            f"'{where}' has its lora_{min(halves)} but not its pair", hint="save the adapter again, whole"
        )
    a, b = header.tensors[halves["A"]].shape, header.tensors[halves["B"]].shape
    rank = a[0] if a else 0
    if len(a) not in (2, 4) or len(b) != len(a) or not rank or b[1] != rank or b[2:] != (1,) * (len(b) - 2):
        raise AdapterError(f"'{where}' has shapes {list(a)} and {list(b)}, which are no LoRA pair")
    if bool(config.get("use_dora", "M" in halves)) != ("M" in halves):
        raise AdapterError(f"'{where}' and the adapter's settings do not agree whether it uses DoRA")
    if "M" in halves and math.prod(header.tensors[halves["M"]].shape) != b[0]:
        raise AdapterError(f"'{where}' has another number of magnitudes than outputs")
    key = halves["A"]
    prefix = _PEFT_PREFIX if key.startswith(_PEFT_PREFIX) else component + "."
    as_saved = key.rpartition(".lora_")[0].removeprefix(prefix)
    stated = _setting(config, "rank_pattern", "r", rank, (module, as_saved))
    if stated != rank:
        raise AdapterError(f"'{where}' has rank {rank}, its settings say {stated:g}")
    unsaid = _PEFT_ALPHA if config else rank
    alpha = _setting(config, "alpha_pattern", "lora_alpha", unsaid, (module, as_saved))
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return LoraModule(
        component=component,
        module=module,
        a_key=halves["A"],
        b_key=halves["B"],
        a_shape=a,
        b_shape=b,
        rank=rank,
        alpha=alpha,
        scale=scale,
        embedding="lora_embedding_" in halves["A"],
        magnitude_key=halves.get("M"),
    )


def _setting(config: dict[str, Any], pattern: str, key: str, default: float, names: tuple[str, ...]) -> float:
    """A module's own value in the table `pattern`, else the one for all under `key`, else `default`."""
    table, value = config.get(pattern) or {}, config.get(key, default)
    if not isinstance(table, dict):
        raise AdapterError(f"'{pattern}' is not a table")
    if table:
        value = next((v for k, v in table.items() if _matches(k, names)), value)
    if type(value) not in (int, float) or not abs(value) < _HUGE:
        raise AdapterError(f"'{key}' or '{pattern}' of '{names[0]}' is {str(value)[:40]}, not a sound number")
    return float(value)


def _matches(pattern: str, names: tuple[str, ...]) -> bool:
    """Like peft's `get_pattern_key`: matches the end of a module's path, or all of it after `^`.

    Only plain paths are taken: the file comes from a stranger, and a regular expression can hang a server.
    """
    plain = re.sub(r"\\([.-])", r"\1", pattern.removeprefix("^"))
    if not re.fullmatch(r"[\w.-]+", plain):
        raise AdapterError(f"the rank or alpha pattern '{pattern[:80]}' is not a plain module path")
    whole = pattern.startswith("^")
    return any(name == plain or (not whole and name.endswith("." + plain)) for name in names)


def _saved_modules(config: dict[str, Any]) -> tuple[str, ...]:
    saved = config.get("modules_to_save") or []
    if not isinstance(saved, list) or not all(isinstance(name, str) for name in saved):
        raise AdapterError("'modules_to_save' is not a list of names")
    return tuple(saved)


def _owner(name: str, saved: tuple[str, ...]) -> str | None:
    """The path of the module that is saved whole and has the tensor `name`; like peft, by its ending."""
    parts = name.split(".")
    paths = (".".join(parts[:end]) for end in range(1, len(parts)))
    return next((path for path in paths if path.endswith(saved)), None)


def _refuse_variants(config: dict[str, Any]) -> None:
    """Refuse what changes the arithmetic: computing it as plain LoRA would serve something else."""
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        raise AdapterError(f"this is a {kind} adapter; hubctl runs LoRA", hint="train it with `hubctl train`")
    for flag, name in _VARIANTS.items():
        if config.get(flag):
            raise AdapterError(f"this is a {name} adapter; hubctl runs plain LoRA and rsLoRA")
    if config.get("bias", "none") != "none":
        raise AdapterError("this adapter changes biases; hubctl runs LoRA with bias='none'")
    start = config.get("init_lora_weights", True)
    if not isinstance(start, bool | str | None) or start not in _PLAIN_STARTS:
        raise AdapterError(
            f"this adapter started from '{str(start)[:40]}', which changes the base's own weights",
            hint="save it with peft's path_initial_model_for_weight_conversion, which makes plain LoRA of it",
        )


def _refuse_key(key: str, header: Header) -> NoReturn:
    way = "save it with diffusers' save_lora_weights or peft's save_pretrained"
    if form := _convertible(header):
        read, whose = form
        try:
            read(without_data(header), "the weights file")
        except AdapterError as error:
            raise AdapterError(
                f"this adapter is in {whose} form: {error.message}", hint=error.hint or way
            ) from error
        raise AdapterError(
            f"this adapter is in {whose} form ('{key[:80]}')",
            hint="hubctl convert FILE --to diffusers -o DIR",
        )
    if (dialect := recognise(header).dialect) in _FOREIGN:
        raise AdapterError(f"this adapter is in the form of {DIALECTS[dialect]} ('{key[:80]}')", hint=way)
    for mark, kind in _OTHER_KINDS.items():
        if mark in key:
            raise AdapterError(f"this adapter is in {kind} form ('{key[:80]}')", hint=way)
    raise AdapterError(f"the weights file has a key that no LoRA has: '{key[:80]}'")


def _convertible(header: Header) -> tuple[Callable[..., tuple[Layer, ...]], str] | None:
    """Who reads the file for `hubctl convert`, and whose form it is; None for others' than these."""
    if is_kohya(header):
        return read_kohya, "kohya"
    return (read_comfyui, "ComfyUI") if is_comfyui(header) else None


def _by_component(flat: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Undo diffusers' flattening: `unet.lora_alpha` → {"unet": {"lora_alpha": ...}}."""
    configs: dict[str, dict[str, Any]] = {}
    for key, value in flat.items():
        component, _, name = key.partition(".")
        configs.setdefault(component, {})[name] = value
    return configs


def read_config(path: Path) -> dict[str, Any]:
    """Peft's settings in the file `path`; `AdapterError` when it is missing, too large or no table."""
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise AdapterError(f"{path.name} is larger than {MAX_CONFIG_BYTES:,} bytes")
        return _parse_json(path.read_bytes(), path.name)
    except OSError as error:
        raise AdapterError(
            f"{path.name} is missing beside {WEIGHTS_PEFT}", hint="save it with peft's save_pretrained"
        ) from error


def _parse_json(text: str | bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{where} is not JSON") from error
    if not isinstance(value, dict):
        raise AdapterError(f"{where} is not a JSON object")
    return value
