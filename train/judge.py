"""A small classifier that says in which style a 64 px picture is drawn, and what it shows.

Shapes: pictures uint8 [N, 64, 64, 3]; logits [N, styles] and [N, subgroups].
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

SIDE_PX = 64
_BATCH = 100


class Judge(nn.Module):
    """Four strided stages of two convolutions each, then one linear head per question."""

    def __init__(
        self,
        *,
        styles: list[str],
        subgroups: list[str],
        widths: tuple[int, ...] = (24, 48, 96, 128),
    ) -> None:
        """Builds the untrained network for these answers."""
        super().__init__()
        self.styles, self.subgroups, self.widths = styles, subgroups, widths
        stages: list[nn.Module] = []
        before = 3
        for width in widths:
            stages += [_conv(before, width, stride=2), _conv(width, width, stride=1)]
            before = width
        self.body = nn.Sequential(*stages)
        self.style_head = nn.Linear(before, len(styles))
        self.subgroup_head = nn.Linear(before * 16, len(subgroups))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores pictures [N, 3, 64, 64] in -1..1."""
        features = self.body(x)
        flat = F.dropout(features.flatten(1), 0.3, self.training)
        return self.style_head(features.mean((2, 3))), self.subgroup_head(flat)

    @torch.no_grad()
    def predict(self, pictures: np.ndarray) -> tuple[list[str], list[str]]:
        """Names the style and the subgroup of uint8 pictures [N, 64, 64, 3]."""
        styles: list[str] = []
        subgroups: list[str] = []
        for part in self._parts(pictures):
            style, subgroup = self(part)
            styles += [self.styles[i] for i in style.argmax(1).tolist()]
            subgroups += [self.subgroups[i] for i in subgroup.argmax(1).tolist()]
        return styles, subgroups

    @torch.no_grad()
    def features(self, pictures: np.ndarray) -> torch.Tensor:
        """What the style head sees of uint8 pictures [N, 64, 64, 3]: [N, D]."""
        return torch.cat([self.body(part).mean((2, 3)) for part in self._parts(pictures)])

    def _parts(self, pictures: np.ndarray) -> tuple[torch.Tensor, ...]:
        if pictures.ndim != 4 or pictures.shape[1:] != (SIDE_PX, SIDE_PX, 3):
            raise ValueError(f"pictures must be [N, 64, 64, 3], not {list(pictures.shape)}")
        self.eval()
        x = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
        return x.split(_BATCH)


def load_judge(path: Path) -> Judge:
    """Reads a judge folder: config.json and model.safetensors (float16, used as float32)."""
    config = json.loads((path / "config.json").read_text())
    judge = Judge(styles=config["styles"], subgroups=config["subgroups"], widths=tuple(config["widths"]))
    tensors = load_file(path / "model.safetensors")
    judge.load_state_dict({name: value.float() for name, value in tensors.items()})
    return judge.eval()


def _conv(before: int, width: int, *, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
