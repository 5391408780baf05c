"""The one door to segmentation models: classes of transformers, and a linear head over a backbone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoModelForSemanticSegmentation, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING

from hubctl.modeling.linear_segmenter import LinearSegmenter, LinearSegmenterConfig
from hubctl.modeling.variants import variant_alone


def load_segmenter(
    base: str | Path,
    labels: Mapping[int, str] | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    local_files_only: bool = False,
) -> PreTrainedModel:
    """The segmentation model in the folder (or Hub repository) `base`.

    A backbone alone (ViT, DINOv2, DINOv3, or a classifier over one) becomes a `LinearSegmenter` with a random
    head.

    Args:
        base: What to load.
        labels: Names of other classes than the base's; where their number differs, the last layer is random.
        dtype: Of all its weights.
        local_files_only: Ask no hub.
    """
    changes: dict[str, Any] = {}
    if labels is not None:
        numbers = {name: number for number, name in labels.items()}
        changes = {"id2label": dict(labels), "label2id": numbers}
    where: dict[str, Any] = {"local_files_only": local_files_only}
    if Path(base).is_dir():
        where["variant"] = variant_alone(Path(base))
    if type(AutoConfig.from_pretrained(base, **where)) in MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING:
        return AutoModelForSemanticSegmentation.from_pretrained(
            base, dtype=dtype, ignore_mismatched_sizes=labels is not None, **changes, **where
        )
    backbone = AutoModel.from_pretrained(base, dtype=dtype, **where)
    # A copy: a configuration of several parts resets how each of them computes attention.
    parts = backbone.config.to_dict()
    config = LinearSegmenterConfig(backbone_config=parts, name_or_path=str(base), **changes)
    return LinearSegmenter(config, backbone).to(dtype)


AutoConfig.register(LinearSegmenterConfig.model_type, LinearSegmenterConfig)
AutoModelForSemanticSegmentation.register(LinearSegmenterConfig, LinearSegmenter)
