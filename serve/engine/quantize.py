"""A base's linear layers with 8-bit weights, through torchao: half the memory of half precision.

Weight-only: what the layers read and write keeps its dtype, and a layer stays the `nn.Linear` that it was,
with another kind of tensor as its weight. LoRA is added to its output, so adapters do not notice; DoRA's
norms are those of the weights as they are now (`host_rows.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hubctl.errors import InputError

if TYPE_CHECKING:
    from torch import nn

    from serve.engine.config import Quantize


def quantize(module: nn.Module, how: Quantize) -> None:
    """Give every linear layer of `module` weights of the kind `how`, one scale for each output, in place.

    Raises:
        InputError: torchao is not installed.
    """
    if how == "none":
        return
    try:
        from torchao import quantization
    except ImportError as error:
        raise InputError(
            f"engine: quantize = '{how}' needs torchao ({error})", hint="pip install 'hubctl[quantize]'"
        ) from error
    # The inductor's settings are the whole process's, and TF32 for all multiplications is one of them.
    configs: dict[str, Any] = {
        "int8": quantization.Int8WeightOnlyConfig,
        "fp8": quantization.Float8WeightOnlyConfig,
    }
    quantization.quantize_(module, configs[how](set_inductor_config=False))
