"""A base's linear layers with weights of 8 or 4 bits: a half or a quarter of the memory of half precision.

Weight-only: what the layers read and write keeps its dtype. With torchao a layer stays the `nn.Linear` that
it was, with another kind of tensor as its weight; bitsandbytes has a layer of its own. LoRA is added to the
output, so adapters do not notice.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from hubctl.errors import InputError

if TYPE_CHECKING:
    from torch import nn


def quantize(module: nn.Module, how: str) -> None:
    """Give every linear layer of `module` weights of the kind `how`, in place.

    `int8` and `fp8` (one scale for each output) are torchao's. `nf4` (QLoRA's, arXiv 2305.14314) is that of
    bitsandbytes, and only made when the module moves to its device; the server does not know it. `none` does
    nothing.

    Raises:
        InputError: the library is not installed.
    """
    if how == "none":
        return
    try:
        _to_nf4(module) if how == "nf4" else _to_8_bits(module, how)
    except ImportError as error:
        raise InputError(
            f"weights of the kind '{how}' need {error.name or 'torchao'} ({error})",
            hint="pip install " + ("bitsandbytes" if how == "nf4" else "'hubctl[quantize]'"),
        ) from error


def _to_8_bits(module: nn.Module, how: str) -> None:
    from torchao import quantization

    # peft misses what merging needs; nothing here merges.
    warnings.filterwarnings("ignore", message="TorchaoLoraLinear was instantiated", category=UserWarning)
    # The inductor's settings are the whole process's, and TF32 for all multiplications is one of them.
    configs: dict[str, Any] = {
        "int8": quantization.Int8WeightOnlyConfig,
        "fp8": quantization.Float8WeightOnlyConfig,
    }
    quantization.quantize_(module, configs[how](set_inductor_config=False))


def _to_nf4(module: nn.Module) -> None:
    from bitsandbytes.nn import Linear4bit, Params4bit
    from torch import nn

    for parent in list(module.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is not nn.Linear:
                continue
            small = Linear4bit(
                layer.in_features,
                layer.out_features,
                bias=layer.bias is not None,
                compute_dtype=layer.weight.dtype,
                quant_type="nf4",
            )
            small.weight = Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4")
            small.bias = layer.bias
            setattr(parent, name, small)
