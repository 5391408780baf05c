"""A plain vision transformer with a linear head: patch tokens, one linear layer, coarse logits.

The classic way to ask ViT or DINO what it knows of an image's parts (https://arxiv.org/abs/2304.07193, 7.3).
Shapes: N images of H x W pixels, T tokens, h x w patches, D features, C classes.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SemanticSegmenterOutput


class LinearSegmenterConfig(PreTrainedConfig):
    """The backbone's own configuration, and the classes (`id2label`, as everywhere in transformers)."""

    model_type = "linear-segmenter"
    sub_configs = {"backbone_config": AutoConfig}  # noqa: RUF012  # transformers reads it from the class

    backbone_config: dict[str, Any] | PreTrainedConfig | None = None
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        """Make a configuration of what `config.json` holds for the backbone."""
        if isinstance(self.backbone_config, dict):
            self.backbone_config = AutoConfig.for_model(**self.backbone_config)
        super().__post_init__(**kwargs)


class LinearSegmenter(PreTrainedModel):
    """A vision transformer of transformers (ViT, DINOv2, DINOv3) under a 1x1 convolution.

    Square patches; class and register tokens come before the patches' tokens.
    """

    config_class = LinearSegmenterConfig
    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    _supports_sdpa = True

    def __init__(self, config: LinearSegmenterConfig, backbone: PreTrainedModel | None = None) -> None:
        """With random weights, but for those of a `backbone` that is given."""
        super().__init__(config)
        self.backbone = AutoModel.from_config(config.backbone_config) if backbone is None else backbone
        if getattr(self.backbone, "pooler", None) is not None:
            self.backbone.pooler = None  # looks at the class token alone
        self.classifier = nn.Conv2d(self.backbone.config.hidden_size, config.num_labels, kernel_size=1)
        # ViT must be asked to fit its positions to other sizes than it was trained at, DINO always does.
        asked = "interpolate_pos_encoding" in inspect.signature(self.backbone.forward).parameters
        self._options = {"interpolate_pos_encoding": True} if asked else {}
        self.post_init()

    def forward(self, pixel_values: torch.Tensor) -> SemanticSegmenterOutput:
        """Logits (N, C, h, w) of images (N, 3, H, W).

        Images that are no whole number of patches are resized to the nearest: a transformer would drop the
        rest, and the logits would be those of a smaller image.
        """
        patch = self.backbone.config.patch_size
        h, w = (max(1, round(side / patch)) for side in pixel_values.shape[-2:])
        if pixel_values.shape[-2:] != (h * patch, w * patch):
            pixel_values = functional.interpolate(
                pixel_values, size=(h * patch, w * patch), mode="bilinear", align_corners=False
            )
        tokens = self.backbone(pixel_values, **self._options).last_hidden_state  # (N, T, D)
        features = tokens[:, -h * w :].mT.unflatten(2, (h, w))  # (N, D, h, w)
        return SemanticSegmenterOutput(logits=self.classifier(features))
