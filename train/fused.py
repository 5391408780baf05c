"""LoRA in fewer passes than peft's `base(x) + B(A(x)) * scale`, which goes over a layer's output three times.

`addmm` adds the scaled product to the output as it computes it; in half precision that also rounds once
instead of three times. Where it takes fewer multiplications, the weight is adapted first and the input goes
through it once, W + scale * BA: of such ways to order the products the best depends on the sizes
(https://arxiv.org/abs/2312.03415). The sums are the same, in another order.
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


def adapts_the_weight(out: int, inside: int, rank: int) -> bool:
    """Whether a step is cheaper when the weight (out, inside) is adapted first.

    For each token that way adds out * inside multiplications, for the gradient of the whole weight; the other
    way, forward and backward, adds three products with A and three with B. Those are narrow, and so a third
    slower than their multiplications say (emoji-64, two cores).
    """
    return out * inside <= 4 * rank * (out + inside)


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
    autocast = torch.is_autocast_enabled(x.device.type)
    # Outside of autocast peft itself brings half precision and the adapter's float32 together.
    if not (autocast or x.dtype == a.dtype == layer.base_layer.weight.dtype):
        return Linear.forward(layer, x)
    scale, weight = layer.scaling[active[0]], layer.base_layer.weight
    # In half precision a weight has no room for what is learnt.
    few = adapts_the_weight(len(weight), len(weight[0]), len(a))
    if few and weight.dtype == torch.float32 and not autocast:
        return functional.linear(x, torch.addmm(weight, b, a, alpha=scale), layer.base_layer.bias)
    y = layer.base_layer(x)
    hidden = functional.linear(x, a).flatten(0, -2)
    return torch.addmm(y.flatten(0, -2), hidden, b.t(), alpha=scale).view(y.shape)
