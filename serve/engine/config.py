"""Settings of one engine: limits, budgets, device."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

from hubctl.errors import InputError

Quantize = Literal["none", "int8", "fp8"]
"""Kinds of weights. 4 bits are left out: torchao's need kernels of a further package, and a GPU."""
Compile = Literal["off", "inductor", "eager"]
"""Backends of torch.compile: `inductor` makes kernels, `eager` only traces, to see whether that works."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineConfig:
    """How an engine uses its device.

    Raises:
        InputError: a value is out of range.
    """

    kind: Literal["torch", "echo"] = "torch"
    """`echo` answers with colours made from the request, without torch: for tests and dry runs."""
    device: str = "auto"
    """`auto` takes a GPU where there is one; otherwise what torch understands, e.g. `cuda:1`."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the base and the adapters; `auto` is float32 on a CPU, on a GPU the half precision of the family."""
    quantize: Quantize = "none"
    """Of the weights of the linear layers in the denoiser (or the segmenter's backbone); needs torchao."""
    offload: bool = False
    """Text encoders, denoiser and VAE wait in host memory, only the one that runs is on the device: for bases
    that do not fit at once. Every change from one to another copies weights."""
    compile: Compile = "off"
    """Run the denoiser (or the segmenter's backbone) through torch.compile, which takes minutes before the
    engine is ready, and again for other sizes of images. It covers adapters of the layers that `hubctl train`
    adapts by default; forwards with others run as without it. Needs a C++ compiler."""
    total_rows: int = 512
    """Rank rows on the device, shared by all resident adapters: 512 hold 32 adapters of rank 16."""
    weights_share: float = 0.5
    """Of the GPU memory that forwards leave free, what may hold weights of their own for the samples of a
    loop, which take less time than rows; 0 leaves it to others on the same GPU."""
    max_batch_rows: int = 32
    """Rows of one forward of the denoiser; a request with guidance takes two per image."""
    max_decode_rows: int = 8
    """Images decoded at once by the VAE."""
    max_gather_s: float = 0.02
    """Longest wait for calls that are about to come; never longer than half the last such forward took, and
    for clients that nobody knows of yet a tenth of a row's time."""
    max_running: int = 16
    """Requests under way at once; further ones wait."""
    max_queued: int = 256
    """Requests that may wait. When as many do, one of a tenant with fewer takes the place of the newest of
    the tenant with most; others are refused."""
    max_adapter_bytes: int = 1 << 30
    """Largest single weights file, and the most memory for one whose layers differ in rank."""
    host_bytes: int = 4 << 30
    """Adapters kept ready in host memory."""
    max_loras: int = 8
    """Adapters in one request."""
    max_images: int = 8
    """Images in one request."""
    max_side_px: int = 2048
    controlnets: dict[str, str] = field(default_factory=dict)
    """Name by which requests ask for it → local folder of a ControlNet for this base."""
    max_steps: int = 200

    def __post_init__(self) -> None:
        """Refuse numbers that leave the engine no room to work."""
        for name in (each.name for each in dataclasses.fields(self)):
            value = getattr(self, name)
            if type(value) is int and value < (0 if name == "max_queued" else 1):
                raise InputError(f"engine: {name} is {value}", hint=f"give {name} 1 or more")
        if not 0 <= self.max_gather_s <= 1:
            raise InputError(f"engine: max_gather_s is {self.max_gather_s}", hint="give 0 to 1 second")
        if not 0 <= self.weights_share <= 1:
            raise InputError(f"engine: weights_share is {self.weights_share}", hint="give 0 to 1")
        if self.compile != "off" and self.offload:
            raise InputError(
                "engine: compile and offload are both on, and a compiled module stays on its device",
                hint="leave one of them out",
            )
        if self.total_rows < 2:
            raise InputError("engine: total_rows is 1, and row 0 is always zero", hint="give 2 or more")
