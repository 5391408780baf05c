"""Tiny random segmentation models of every family and adapters for them, saved as their libraries do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoModelForSemanticSegmentation,
    BeitConfig,
    BeitImageProcessorPil,
    ConvNextConfig,
    Data2VecVisionConfig,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    DINOv3ViTConfig,
    DPTConfig,
    DPTImageProcessorPil,
    MobileNetV2Config,
    MobileNetV2ImageProcessorPil,
    MobileViTConfig,
    MobileViTImageProcessorPil,
    MobileViTV2Config,
    SegformerConfig,
    SegformerImageProcessorPil,
    SwinConfig,
    UperNetConfig,
    ViTConfig,
    ViTImageProcessorPil,
)

from hubctl.adapter.package import BaseIdentity, Manifest, manifest_json
from hubctl.modeling.linear_segmenter import LinearSegmenterConfig
from hubctl.modeling.loading import load_segmenter
from tests.serve import tiny

SIDE_PX = 64
_SQUARE = {"height": SIDE_PX, "width": SIDE_PX}
_STAGES = ["stage1", "stage2", "stage3", "stage4"]
_VIT: dict[str, Any] = {"image_size": SIDE_PX, "hidden_size": 16, "num_hidden_layers": 4,
                        "num_attention_heads": 2, "intermediate_size": 24}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Segmenter:
    """One kind of base, as data."""

    config: Any
    processor: Any
    targets: tuple[str, ...]
    """Layers of the backbone for LoRA: of every kind that it has."""
    head: str = "decode_head"
    """The module whose output is the logits."""
    classifier: str = "classifier"
    """The last layer of the head, and of an auxiliary head."""
    beside: tuple[str, ...]
    """Layers for LoRA in the head or neck, besides the classifier."""
    all_heads: tuple[str, ...] = ()
    """Everything outside the backbone, if that is more than the head."""

    def model(self) -> Any:
        """A random model whose logits are neither tiny nor huge."""
        torch.manual_seed(0)
        model = AutoModelForSemanticSegmentation.from_config(self.config)
        stir(model)
        hooks = [
            layer.register_forward_hook(_scale)
            for layer in model.modules()
            if isinstance(layer, nn.Linear | nn.Conv2d)
        ]
        with torch.no_grad():
            model.eval()(torch.randn(2, 3, SIDE_PX, SIDE_PX))
        for hook in hooks:
            hook.remove()
        model.config.initializer_range = 0.2  # for a new last layer
        return model


def _scale(layer: Any, _: Any, output: torch.Tensor) -> torch.Tensor:
    """Scale the layer so that its outputs vary by a half; random deep models fade or blow up otherwise."""
    spread = 2 * output.std()
    layer.weight /= spread
    return output / spread


def _upernet(backbone: Any, *targets: str) -> Segmenter:
    return Segmenter(
        config=UperNetConfig(
            backbone_config=backbone,
            hidden_size=16,
            auxiliary_channels=8,
            pool_scales=[1, 2],
            num_labels=2,
        ),
        processor=SegformerImageProcessorPil(size=_SQUARE),
        targets=targets,
        beside=("bottleneck.conv",),
        all_heads=("decode_head", "auxiliary_head"),
    )


def _linear(backbone: Any, *targets: str) -> Segmenter:
    return Segmenter(
        config=LinearSegmenterConfig(backbone_config=backbone),
        processor=ViTImageProcessorPil(size=_SQUARE),
        targets=targets,
        head="classifier",
        beside=(),
    )


SEGMENTERS = {
    "segformer": Segmenter(
        config=SegformerConfig(
            hidden_sizes=[16, 32],
            num_encoder_blocks=2,
            depths=[1, 1],
            sr_ratios=[2, 1],
            patch_sizes=[7, 3],
            strides=[4, 2],
            num_attention_heads=[1, 2],
            mlp_ratios=[2, 2],
            decoder_hidden_size=32,
        ),
        processor=SegformerImageProcessorPil(size=_SQUARE),
        targets=("q_proj", "v_proj", "fc1", "sequence_reduction.sequence_reduction"),
        beside=("linear_fuse", "proj"),
    ),
    "beit": Segmenter(
        config=BeitConfig(
            **_VIT,
            patch_size=8,
            out_indices=[1, 2, 3, 4],
            pool_scales=[1, 2],
            auxiliary_channels=8,
            use_relative_position_bias=True,
        ),
        processor=BeitImageProcessorPil(size=_SQUARE),
        targets=("q_proj", "v_proj", "o_proj", "fc1", "projection"),
        beside=("psp_bottleneck.convolution",),
        all_heads=("fpn", "decode_head", "auxiliary_head"),
    ),
    "dpt": Segmenter(
        config=DPTConfig(
            **_VIT,
            patch_size=16,
            backbone_out_indices=[0, 1, 2, 3],
            neck_hidden_sizes=[8, 8, 16, 16],
            fusion_hidden_size=16,
        ),
        processor=DPTImageProcessorPil(size=_SQUARE, do_pad=True, size_divisor=48),
        targets=("query", "value", "attention.output.dense", "intermediate.dense"),
        # peft goes by endings: "head" would also be the `head` inside it, and peft cannot load that again.
        head="head.head",
        classifier="head.4",
        beside=("convolution1", "readout_projects.0.0"),
        all_heads=("neck", "head.head"),
    ),
    "data2vec-vision": Segmenter(
        config=Data2VecVisionConfig(
            **_VIT, patch_size=8, out_indices=[0, 1, 2, 3], pool_scales=[1, 2], auxiliary_channels=8
        ),
        processor=BeitImageProcessorPil(size=_SQUARE),
        targets=("query", "value", "attention.output.dense", "intermediate.dense"),
        beside=("psp_bottleneck.convolution",),
        all_heads=("fpn1", "fpn2", "decode_head", "auxiliary_head"),
    ),
    "mobilevit": Segmenter(
        config=MobileViTConfig(
            image_size=SIDE_PX,
            hidden_sizes=[12, 16, 20],
            neck_hidden_sizes=[8, 8, 16, 16, 16, 16, 16],
            num_attention_heads=2,
            aspp_out_channels=16,
        ),
        processor=MobileViTImageProcessorPil(
            size={"shortest_edge": SIDE_PX}, crop_size={"height": 48, "width": 48}
        ),
        targets=("query", "value", "intermediate.dense", "conv_1x1.convolution", "fusion.convolution"),
        head="segmentation_head",
        beside=("project.convolution",),
    ),
    "mobilevitv2": Segmenter(
        config=MobileViTV2Config(image_size=SIDE_PX, width_multiplier=0.25, aspp_out_channels=16),
        processor=MobileViTImageProcessorPil(size=_SQUARE, do_center_crop=False),
        targets=("qkv_proj.convolution", "out_proj.convolution", "ffn.conv1.convolution"),
        head="segmentation_head",
        beside=("project.convolution",),
    ),
    "mobilenet-v2": Segmenter(
        config=MobileNetV2Config(image_size=SIDE_PX, depth_multiplier=0.25, tf_padding=False),
        processor=MobileNetV2ImageProcessorPil(
            size={"shortest_edge": SIDE_PX}, crop_size={"height": 48, "width": 48}
        ),
        targets=("expand_1x1.convolution", "reduce_1x1.convolution"),
        head="segmentation_head",
        beside=("conv_projection.convolution",),
    ),
    "upernet-swin": _upernet(
        SwinConfig(
            image_size=SIDE_PX,
            embed_dim=16,
            depths=[2, 1, 1, 1],
            num_heads=[2, 2, 2, 2],
            window_size=4,
            out_features=_STAGES,
        ),
        "q_proj",
        "v_proj",
        "fc1",
        "reduction",
    ),
    "upernet-dinov2": _upernet(
        Dinov2Config(**_VIT, patch_size=8, out_features=_STAGES), "q_proj", "v_proj", "fc1", "projection"
    ),
    "upernet-beit": _upernet(
        BeitConfig(
            **_VIT,
            patch_size=8,
            out_features=_STAGES,
            add_fpn=True,
            reshape_hidden_states=True,
            use_relative_position_bias=True,
        ),
        "q_proj",
        "v_proj",
        "o_proj",
        "fc1",
        "projection",
    ),
    "upernet-convnext": _upernet(
        ConvNextConfig(hidden_sizes=[8, 8, 16, 16], depths=[1] * 4, out_features=_STAGES),
        "pwconv1",
        "pwconv2",
        "downsampling_layer.1",
    ),
    "linear-vit": _linear(ViTConfig(**_VIT, patch_size=8), "q_proj", "v_proj", "fc1", "projection"),
    "linear-dinov2": _linear(Dinov2Config(**_VIT, patch_size=8), "q_proj", "v_proj", "fc1", "projection"),
    "linear-dinov2-registers": _linear(
        Dinov2WithRegistersConfig(**_VIT, patch_size=8), "q_proj", "k_proj", "v_proj", "fc2"
    ),
    "linear-dinov3": _linear(
        DINOv3ViTConfig(**_VIT, patch_size=8, num_register_tokens=3), "q_proj", "v_proj", "up_proj"
    ),
}


def write_segmenter(folder: Path, name: str) -> Path:
    """A base folder of one of `SEGMENTERS`, with two classes."""
    segmenter = SEGMENTERS[name]
    model = segmenter.model()
    model.config.id2label = {0: "thing 0", 1: "thing 1"}
    model.save_pretrained(folder)
    segmenter.processor.save_pretrained(folder)
    return folder


def write_adapter(
    folder: Path,
    base: Path,
    *,
    seed: int,
    targets: Sequence[str],
    heads: Sequence[str] = (),
    rank: int = 4,
    labels: dict[int, str] | None = None,
) -> Path:
    """A peft adapter for a segmentation model, with the heads in `heads` replaced whole."""
    torch.manual_seed(seed)
    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules=list(targets), modules_to_save=list(heads) or None
    )
    adapted: Any = get_peft_model(load_segmenter(base, labels).eval(), config)
    tiny.randomise(adapted, seed, 0.3)
    for name, module in adapted.named_modules():
        if "modules_to_save" in name:
            stir(module)
    adapted.save_pretrained(folder, save_embedding_layers=False)
    if labels:
        data = {"labels": {str(number): name for number, name in labels.items()}}
        manifest = Manifest(task="image-segmentation", base=BaseIdentity(id="tiny"), data=data)
        (folder / "hubctl.json").write_text(manifest_json(manifest))
    return folder


def names_on_disk(folder: Path, name: str) -> dict[str, str]:
    """What `save_pretrained` calls each tensor in `folder`, an empty one, by its name in memory."""
    model = SEGMENTERS[name].model()
    state = model.state_dict()
    for number, tensor in enumerate(state.values()):
        tensor.fill_(number)
    model.save_pretrained(folder)
    current = list(state)
    return {
        current[int(tensor.flatten()[0])]: old
        for old, tensor in load_file(folder / "model.safetensors").items()
    }


def stir(module: nn.Module) -> None:
    """Give every BatchNorm weights and statistics of its own."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            part.running_mean = torch.randn(part.num_features) * 0.1
            part.running_var = torch.rand(part.num_features) + 0.5
