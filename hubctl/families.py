"""Families of base models, as data: what a folder holds, how it is run, where LoRA goes by default."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hubctl.errors import InputError

Task = Literal["text-to-image", "image-segmentation"]
"""The Hub's own pipeline tags."""

MAX_CLASSES = 256
"""Of a segmentation: its labels have 8 bits."""

ATTENTION_TARGETS = ("to_k", "to_q", "to_v", "to_out.0")
"""Every attention projection of a diffusers denoiser: the default of diffusers' own LoRA scripts."""
FALLBACK_PX = 512
"""Side of the pictures for a base whose files do not say what it was made for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """One kind of base model."""

    name: str
    task: Task
    classes: tuple[str, ...]
    """`_class_name` in model_index.json, or the entry of `architectures` in config.json."""
    denoiser: str
    """What adapters change most: `unet`, `transformer`, or `model` for a whole transformers model."""
    text_encoders: tuple[str, ...] = ()
    default_targets: tuple[str, ...]
    """Endings of layer names; a base takes LoRA in those that it has."""
    unbatched: tuple[str, ...] = ()
    """Arguments of the denoiser that have no batch dimension and must be equal to share a forward."""
    listed: tuple[str, ...] = ()
    """Arguments of the denoiser that are lists with an item for each row, as its output is then."""
    ragged: bool = False
    """The denoiser gets prompts at their own lengths, not padded to one."""
    guidance: str = "guidance_scale"
    """What the pipeline calls the strength of classifier-free guidance."""
    half: Literal["float16", "bfloat16"] = "float16"
    """What it runs in on a GPU; those trained in bfloat16 overflow in float16."""
    patch: int = 1
    """Latents on a side of one of the denoiser's tokens: an image's sides are multiples of it."""
    min_image_px: int = 0
    """Least side of an image to start from."""
    max_image_aspect: float = math.inf
    """Longer side of such an image over its shorter one."""
    controlnet: str | None = None
    """Class of the ControlNets that fit. SD3's are left out: their pipelines draw from torch's global
    generator, so that a seed does not say which image comes."""
    linear_head: bool = False
    """Runs as `hubctl.modeling`'s LinearSegmenter, which transformers has no class for."""
    headless: bool = False
    """A backbone alone: each adapter brings the head."""
    cross_attention_dim: int | None = None
    """Tells families with one pipeline class apart (SD 1.x from 2.x)."""

    @property
    def components(self) -> tuple[str, ...]:
        """Components that LoRA may change."""
        return (self.denoiser, *self.text_encoders)


FAMILIES = (
    Family(
        name="sd2",
        task="text-to-image",
        classes=("StableDiffusionPipeline",),
        controlnet="ControlNetModel",
        denoiser="unet",
        text_encoders=("text_encoder",),
        default_targets=ATTENTION_TARGETS,
        cross_attention_dim=1024,
    ),
    Family(
        name="sd1",
        task="text-to-image",
        classes=("StableDiffusionPipeline",),
        controlnet="ControlNetModel",
        denoiser="unet",
        text_encoders=("text_encoder",),
        default_targets=ATTENTION_TARGETS,
    ),
    Family(
        name="sdxl",
        task="text-to-image",
        classes=("StableDiffusionXLPipeline",),
        controlnet="ControlNetModel",
        denoiser="unet",
        text_encoders=("text_encoder", "text_encoder_2"),
        default_targets=ATTENTION_TARGETS,
    ),
    Family(
        name="sd3",
        task="text-to-image",
        classes=("StableDiffusion3Pipeline",),
        denoiser="transformer",
        text_encoders=("text_encoder", "text_encoder_2"),
        default_targets=ATTENTION_TARGETS,
        half="bfloat16",
        patch=2,
    ),
    Family(
        name="flux",
        task="text-to-image",
        classes=("FluxPipeline",),
        controlnet="FluxControlNetModel",
        denoiser="transformer",
        text_encoders=("text_encoder",),
        default_targets=ATTENTION_TARGETS,
        half="bfloat16",
        unbatched=("img_ids", "txt_ids"),
        patch=2,
    ),
    Family(
        name="flux2-klein",
        task="text-to-image",
        classes=("Flux2KleinPipeline",),
        denoiser="transformer",
        default_targets=ATTENTION_TARGETS,
        half="bfloat16",
        unbatched=("img_ids", "txt_ids"),
        patch=2,
        min_image_px=64,  # diffusers' Flux2ImageProcessor refuses others
        max_image_aspect=8,
    ),
    Family(
        name="qwen-image",
        task="text-to-image",
        classes=("QwenImagePipeline",),
        denoiser="transformer",
        default_targets=ATTENTION_TARGETS,
        half="bfloat16",
        guidance="true_cfg_scale",
        ragged=True,
        patch=2,
    ),
    Family(
        name="z-image",
        task="text-to-image",
        classes=("ZImagePipeline",),
        denoiser="transformer",
        default_targets=ATTENTION_TARGETS,
        half="bfloat16",
        listed=("x", "cap_feats"),
        ragged=True,
        patch=2,
    ),
    Family(
        name="sana",
        task="text-to-image",
        classes=("SanaPipeline",),
        denoiser="transformer",
        default_targets=ATTENTION_TARGETS,
        half="bfloat16",
    ),
    Family(
        name="segformer",
        task="image-segmentation",
        classes=("SegformerForSemanticSegmentation",),
        denoiser="model",
        default_targets=("q_proj", "v_proj"),
    ),
    Family(
        name="beit",
        task="image-segmentation",
        classes=("BeitForSemanticSegmentation",),
        denoiser="model",
        default_targets=("q_proj", "v_proj"),
    ),
    Family(
        name="dpt",
        task="image-segmentation",
        classes=("DPTForSemanticSegmentation",),
        denoiser="model",
        default_targets=("query", "value"),
    ),
    Family(
        name="data2vec-vision",
        task="image-segmentation",
        classes=("Data2VecVisionForSemanticSegmentation",),
        denoiser="model",
        default_targets=("query", "value"),
    ),
    Family(
        name="upernet",
        task="image-segmentation",
        classes=("UperNetForSemanticSegmentation",),
        denoiser="model",
        # Swin, DINOv2 and BEiT have the first two, ConvNeXt the others.
        default_targets=("q_proj", "v_proj", "pwconv1", "pwconv2"),
    ),
    Family(
        name="mobilevit",
        task="image-segmentation",
        classes=("MobileViTForSemanticSegmentation",),
        denoiser="model",
        default_targets=("query", "value"),
    ),
    Family(
        name="mobilevitv2",
        task="image-segmentation",
        classes=("MobileViTV2ForSemanticSegmentation",),
        denoiser="model",
        default_targets=("qkv_proj.convolution",),
    ),
    Family(
        name="mobilenet-v2",
        task="image-segmentation",
        classes=("MobileNetV2ForSemanticSegmentation",),
        denoiser="model",
        default_targets=("expand_1x1.convolution", "reduce_1x1.convolution"),
    ),
    Family(
        name="linear-segmenter",
        task="image-segmentation",
        classes=("LinearSegmenter",),
        denoiser="model",
        default_targets=("q_proj", "v_proj"),
        linear_head=True,
    ),
    Family(
        name="vision-backbone",
        task="image-segmentation",
        classes=(
            "ViTModel",
            "ViTForImageClassification",
            "Dinov2Model",
            "Dinov2ForImageClassification",
            "Dinov2WithRegistersModel",
            "Dinov2WithRegistersForImageClassification",
            "DINOv3ViTModel",
        ),
        denoiser="model",
        default_targets=("q_proj", "v_proj"),
        linear_head=True,
        headless=True,
    ),
)

_UNSAID_CLASSES = 2  # transformers' own default


def detect_family(folder: Path) -> Family:
    """The family of the base model in `folder`, from its own model_index.json or config.json.

    Raises:
        InputError: the folder is no base model, or one of a kind that hubctl does not run.
    """
    index, config = folder / "model_index.json", folder / "config.json"
    if index.is_file():
        found = [str(_read_json(index).get("_class_name"))]
    elif config.is_file():
        names = _read_json(config).get("architectures")
        found = [str(name) for name in names] if isinstance(names, list) else []
    else:
        raise InputError(
            f"{folder} is not a base model: it has neither model_index.json nor config.json",
            hint="name a diffusers pipeline folder, a transformers folder, or an embedded base (emoji-64)",
        )
    for family in FAMILIES:
        if set(found) & set(family.classes) and _same_width(family, folder):
            _refuse_more_inputs(family, folder)
            return family
    known = sorted({name for family in FAMILIES for name in family.classes})
    raise InputError(
        f"{folder} holds {' / '.join(found) or 'an unnamed model'}, which hubctl does not run",
        hint=f"known kinds: {', '.join(known)}",
    )


def class_count(folder: Path) -> int:
    """Classes of its own of the segmentation base in `folder`: its config.json as transformers reads it."""
    config = _read_json(folder / "config.json")
    count, names = config.get("num_labels"), config.get("id2label")
    if isinstance(count, int):
        return count
    return len(names) if isinstance(names, dict) else _UNSAID_CLASSES


def _same_width(family: Family, folder: Path) -> bool:
    if family.cross_attention_dim is None:
        return True
    config = folder / family.denoiser / "config.json"
    return config.is_file() and _read_json(config).get("cross_attention_dim") == family.cross_attention_dim


def _refuse_more_inputs(family: Family, folder: Path) -> None:
    """U-Nets that also want a masked image or one to edit come in pipelines of classes that look alike."""
    config = folder / family.denoiser / "config.json"
    if family.denoiser != "unet" or not config.is_file():
        return
    values = _read_json(config)
    inputs, outputs = values.get("in_channels", 4), values.get("out_channels", 4)
    if inputs != outputs:
        raise InputError(
            f"the U-Net in {folder} takes {inputs} channels and gives {outputs}, as inpainting models do",
            hint="name an ordinary base: it inpaints too",
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} is not a JSON object")
    return value
