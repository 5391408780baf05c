"""Which tool's spelling a weights file is in, and the layers it adapts, for every kind that people share.

More is recognised here than hubctl runs: `read_layout` stays the judge of that. Names of tensors are those of
kohya's sd-scripts, LyCORIS, XLabs' and Black Forest Labs' Flux adapters, diffusers and peft.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hubctl.adapter.header import Header
from hubctl.adapter.layer_shapes import LayerShapes

DIALECTS = {
    "diffusers": "diffusers",
    "diffusers-processors": "diffusers' attention processors of 2023",
    "peft": "peft",
    "kohya": "kohya / A1111",
    "lycoris": "LyCORIS",
    "xlabs": "XLabs",
    "bfl": "Black Forest Labs",
    "bfl-control": "Black Forest Labs' control adapter",
    "fal": "fal",
    "comfyui": "ComfyUI",
    "unknown": "unknown",
}
"""Names of dialects, and whose they are."""

# What a tensor's name ends in: the part that it plays, or the kind of adapter that alone has such parts.
_ENDINGS = re.compile(
    r"""^(?:(?P<module>.*?)\.)?(?:
      (?P<A>lora_A(?:\.\w+)?\.weight|lora_A|lora_down\.weight|lora\.down\.weight
           |lora_linear_layer\.down\.weight|lora_embedding_A(?:\.\w+)?)
    | (?P<B>lora_B(?:\.\w+)?\.weight|lora_B|lora_up\.weight|lora\.up\.weight
           |lora_linear_layer\.up\.weight|lora_embedding_B(?:\.\w+)?)
    | (?P<M>dora_scale|lora_magnitude_vector(?:\.\w+){0,2})
    | (?P<mid>lora_mid\.weight)
    | (?P<bias>lora_B\.bias|lora_up\.bias)
    | (?P<E>lora_E)
    | (?P<ranknum>ranknum)
    | (?P<alpha>alpha)
    | (?P<LoHa>hada_(?:w[12]_[ab]|t[12]))
    | (?P<LoKr>lokr_(?:w[12](?:_[ab])?|t[12]))
    | (?P<BOFT>boft_[RsP])
    | (?P<OFT>oft_(?:blocks|diag|[rR])(?:\.weight)?|rescale)
    | (?P<IA3>ia3_l|on_input)
    | (?P<GLoRA>(?:[ab][12]|bm[12])\.weight)
    | (?P<VeRA>vera_(?:lambda_[bd]|[AB]))
    | (?P<TLoRA>[qp]_layer\.weight|lambda_layer|base_(?:q|p|lambda))
    | (?P<full>diff(?:_b)?)
    | (?P<norm>[wb]_norm)
    )$""",
    re.VERBOSE,
)
# The two that end in the layer's own name: diffusers' processors of 2023, and XLabs'.
_PROCESSOR = re.compile(r"^(?P<module>.*)_lora(?P<number>\d?)\.(?P<half>down|up)\.weight$")
_KINDS = ("LoHa", "LoKr", "BOFT", "OFT", "IA3", "GLoRA", "VeRA", "TLoRA", "full", "norm")
_NAMES = {"full": "full difference", "norm": "norms", "TLoRA": "T-LoRA"}
_PEFT_TYPES = {
    "LORA": "LoRA", "ADALORA": "AdaLoRA", "LOHA": "LoHa", "LOKR": "LoKr", "OFT": "OFT", "BOFT": "BOFT",
    "IA3": "IA3", "VERA": "VeRA",
}  # fmt: skip

_KOHYA = re.compile(r"^(?:lora|lycoris)_(unet|te[123]?|transformer|prior_unet|text_encoder(?:_[23])?)_(?=\w)")
_KOHYA_COMPONENTS = {
    "te": "text_encoder", "te1": "text_encoder", "te2": "text_encoder_2", "te3": "text_encoder_3",
    "prior_unet": "prior",
}  # fmt: skip
_DOTTED = re.compile(r"^(unet|transformer(?:_2)?|text_encoder(?:_[23])?|prior|controlnet)\.")
_PEFT = "base_model.model."
_COMFY = re.compile(r"^(?:model\.)?diffusion_model\.")
_FLUX_BLOCKS = re.compile(r"^(?:double|single)_blocks[._]\d")
_TRANSFORMER = re.compile(
    r"(?:double|single|joint)_blocks_\d|(?:single_|joint_)?transformer_blocks_\d|blocks_\d|layers_\d"
)
_UNET = ("down_blocks_", "up_blocks_", "mid_block_", "input_blocks_", "output_blocks_", "middle_block_")


@dataclass(frozen=True, kw_only=True, slots=True)
class Recognised:
    """A weights file, as far as names and shapes tell."""

    dialect: str
    """A key of `DIALECTS`."""
    layers: tuple[LayerShapes, ...]
    whole: tuple[str, ...] = ()
    """Tensors that replace the base's own (peft's `modules_to_save`)."""
    unknown: tuple[str, ...] = ()
    """Tensors that no kind of adapter has."""

    @property
    def kinds(self) -> Counter[str]:
        """How many layers of each kind."""
        return Counter(layer.kind for layer in self.layers)

    @property
    def alphas(self) -> frozenset[str]:
        """The tensors that hold an alpha, and so no weights."""
        return frozenset(layer.keys["alpha"] for layer in self.layers if "alpha" in layer.keys)


def recognise(header: Header, config: Mapping[str, Any] | None = None) -> Recognised:
    """Name the dialect of a weights file, and its layers; `config` is peft's `adapter_config.json`."""
    peft_type = str((config or {}).get("peft_type", "LORA")).upper()
    saved = (config or {}).get("modules_to_save") or ()
    kept = tuple(name for name in saved if isinstance(name, str)) if isinstance(saved, list) else ()
    parts: dict[tuple[str, str], dict[str, str]] = {}
    kinds: dict[tuple[str, str], set[str]] = {}
    whole, unknown = [], []
    for key in header.tensors:
        component, name = _component(key)
        module, part, kind = _split(name)
        if not part and config is not None and any(f".{keep}." in f".{name}" for keep in kept):
            whole.append(key)
            continue
        if not part and config is not None and peft_type != "LORA" and key.startswith(_PEFT):
            module, _, part = name.rpartition(".")  # a kind that is known by peft's settings alone
        if not part or part in parts.get((component, module), {}):  # the second name of one tensor
            unknown.append(key)
            continue
        parts.setdefault((component, module), {})[part] = key
        kinds.setdefault((component, module), set()).add(kind)
    named = _PEFT_TYPES.get(peft_type, peft_type) if config is not None and peft_type != "LORA" else None
    layers = tuple(
        LayerShapes(
            component=component,
            module=module,
            kind=named or _kind(kinds[component, module], found, header),
            keys=found,
            shapes={part: header.tensors[key].shape for part, key in found.items()},
        )
        for (component, module), found in sorted(parts.items())
    )
    layers, unknown = _ia3(layers, unknown, header)
    return Recognised(
        dialect=_dialect(header, layers, config) if layers or whole else "unknown",
        layers=layers,
        whole=tuple(whole),
        unknown=tuple(unknown),
    )


def _component(key: str) -> tuple[str, str]:
    """The component that `key` belongs to, and the rest of its name."""
    if found := _KOHYA.match(key):
        name = key[found.end() :]
        component = _KOHYA_COMPONENTS.get(found.group(1), found.group(1))
        if component == "unet" and _TRANSFORMER.match(name):
            component = "transformer"  # kohya calls every denoiser the UNet
        return component, name
    if key.startswith(_PEFT):
        name = key.removeprefix(_PEFT)
        return ("transformer" if _FLUX_BLOCKS.match(name) else "model"), name
    if found := _DOTTED.match(key):
        return found.group(1), key[found.end() :]
    name = _COMFY.sub("", key)
    flat = name.replace(".", "_")
    if _TRANSFORMER.match(flat):
        return "transformer", name
    return ("unet" if name != key or flat.startswith(_UNET) else "model"), name


def _split(name: str) -> tuple[str, str, str]:
    """The layer, the part that the tensor plays, and the kind of adapter; the part is empty for others."""
    if found := _PROCESSOR.match(name):
        stream = found.group("number")  # XLabs': 1 for the image, 2 for the text
        module = found.group("module").replace("processor.", "") + (f"_lora{stream}" if stream else "")
        return module, "A" if found.group("half") == "down" else "B", "LoRA"
    if not (found := _ENDINGS.match(name)):
        return name, "", ""
    module, group = found.group("module") or "", str(found.lastgroup)
    if group in _KINDS:
        return module, name[len(module) :].lstrip("."), group
    return module, group, "AdaLoRA" if group in ("E", "ranknum") else "LoRA"


def _kind(kinds: set[str], parts: Mapping[str, str], header: Header) -> str:
    """The kind of a layer from those of its tensors: `alpha` and DoRA's magnitudes go with any."""
    kind = next((k for k in _KINDS if k in kinds), "AdaLoRA" if "AdaLoRA" in kinds else "LoRA")
    # LyCORIS calls both `oft_blocks`; its BOFT has a stack of them for each step of the butterfly.
    if kind == "OFT" and len(header.tensors[parts["oft_blocks"]].shape if "oft_blocks" in parts else ()) == 4:
        kind = "BOFT"
    return _NAMES.get(kind, kind)


def _ia3(
    layers: tuple[LayerShapes, ...], unknown: list[str], header: Header
) -> tuple[tuple[LayerShapes, ...], list[str]]:
    """Give LyCORIS' IA3 its factors: they are called `weight`, which only `on_input` beside them explains."""
    left = set(unknown)
    whole = []
    for layer in layers:
        mark = layer.keys.get("on_input")
        key = mark.removesuffix("on_input") + "weight" if mark else ""
        if key in left:
            left.remove(key)
            layer = LayerShapes(
                component=layer.component, module=layer.module, kind=layer.kind,
                keys={**layer.keys, "weight": key},
                shapes={**layer.shapes, "weight": header.tensors[key].shape},
            )  # fmt: skip
        whole.append(layer)
    return tuple(whole), [key for key in unknown if key in left]


def _dialect(header: Header, layers: tuple[LayerShapes, ...], config: Mapping[str, Any] | None) -> str:
    votes: Counter[str] = Counter()
    for key in header.tensors:
        bare = _COMFY.sub("", key)
        if key.startswith(_PEFT):
            flux = config is None and _FLUX_BLOCKS.match(key.removeprefix(_PEFT))
            votes["fal" if flux else "peft"] += 1
        elif _KOHYA.match(key):
            votes["kohya"] += 1
        elif ".processor." in key:
            votes["xlabs" if _FLUX_BLOCKS.match(bare) else "diffusers-processors"] += 1
        elif _FLUX_BLOCKS.match(bare):
            votes["bfl-control" if "query_norm.scale" in key else "bfl"] += 1
        elif bare != key:
            votes["comfyui"] += 1
        elif _DOTTED.match(key):
            votes["diffusers"] += 1
    if votes["bfl-control"]:
        return "bfl-control"
    dialect = votes.most_common(1)[0][0] if votes else "peft" if config is not None else "unknown"
    lycoris = any(layer.kind not in ("LoRA", "AdaLoRA") for layer in layers)
    return "lycoris" if lycoris and dialect in ("kohya", "unknown") else dialect
