"""LoRA in a pass less: what peft computes in four operations, its last three in one product.

peft's `base(x) + B(A(x)) * scale` goes three times over the layer's whole output, and back again in the
backward; `addmm` adds the scaled product to the output as it computes it. The sums are the same, in another
order, and in half precision they are rounded once instead of three times.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import nn
from torch.nn import functional


def fuse_lora(module: nn.Module) -> None:
    """Compute the plain LoRA layers of `module` so; what they are and hold stays peft's."""
    for layer in module.modules():
        if type(layer) is Linear:
            layer.forward = MethodType(_fused, layer)


def unfuse_lora(module: nn.Module) -> None:
    """Compute them as peft does again."""
    for layer in module.modules():
        if type(layer) is Linear:
            vars(layer).pop("forward", None)


def _fused(layer: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    active = layer.active_adapters
    plain = (
        len(active) == 1
        and active[0] in layer.lora_A
        and not (args or kwargs or layer.merged or layer.disable_adapters)
        and x.dim() > 1
        and active[0] not in layer.lora_variant  # DoRA and its like
        and isinstance(layer.lora_dropout[active[0]], nn.Identity)
    )
    if not plain:
        return Linear.forward(layer, x, *args, **kwargs)
    a, b = layer.lora_A[active[0]].weight, layer.lora_B[active[0]].weight
    # Outside of autocast peft itself brings half precision and the adapter's float32 together.
    if not (torch.is_autocast_enabled(x.device.type) or x.dtype == a.dtype == layer.base_layer.weight.dtype):
        return Linear.forward(layer, x)
    y = layer.base_layer(x)
    hidden = functional.linear(x, a).flatten(0, -2)
    return torch.addmm(y.flatten(0, -2), hidden, b.t(), alpha=layer.scaling[active[0]]).view(y.shape)
