"""What it costs to load an adapter, and to switch to one, against how many are resident."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from hubctl.base_models import BaseModel
from serve.bench.adapters import fetch, pinned
from serve.bench.measure import median_s
from serve.engine.config import EngineConfig
from serve.engine.core import Core
from serve.engine.requests import LoraUse

SWITCHES = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """Median seconds of host time with `resident` adapters."""

    resident: int
    activate_s: float
    """Lease a resident adapter's rows and make the forward's mix."""
    load_s: float | None = None
    """From files to rows, through the gate."""
    copy_s: float | None = None
    """Reading the same bytes and copying them to the device: the limit."""


def pool_costs(
    module: torch.nn.Module, base: BaseModel, folder: Path, counts: Sequence[int], *, rank: int
) -> list[Cost]:
    """Measure a pool with room for the largest of `counts`, over `module` (which gets hooks)."""
    config = EngineConfig(total_rows=(max(counts) + 1) * rank + 1, host_bytes=1 << 30)
    core = Core(base, config, fetch, {base.family.denoiser: module})
    residency, pool = core.residency, core.pool

    def activate(number: int) -> None:
        with residency.lease((LoraUse(ref=pinned(folder, number)),), None) as uses, pool.mixed([(uses, 1)]):
            pass

    costs, known = [], 0
    for count in sorted(counts):
        took = []
        while known < count:
            started_s = time.perf_counter()
            activate(known)
            _wait(pool.a.device)
            took.append(time.perf_counter() - started_s)
            known += 1
        numbers = random.Random(count).choices(range(count), k=SWITCHES)
        activate_s = median_s(activate, numbers)
        costs.append(
            Cost(
                resident=count,
                activate_s=activate_s,
                load_s=sorted(took)[len(took) // 2] if took else None,
                copy_s=median_s(lambda _: _copy(folder, pool.a.device), range(5)),
            )
        )
    core.close()
    return costs


def diffusers_costs(twin: Any, folder: Path, counts: Sequence[int]) -> list[Cost]:
    """The same with diffusers' own calls on a pipeline without adapters."""
    costs: list[Cost] = []
    for number in range(max(counts)):
        started_s = time.perf_counter()
        twin.load_lora_weights(folder, adapter_name=f"r{number}")
        load_s = time.perf_counter() - started_s
        if number + 1 in counts:
            names = [[f"r{i % (number + 1)}"] for i in range(10)]
            activate_s = median_s(twin.set_adapters, names)
            costs.append(Cost(resident=number + 1, activate_s=activate_s, load_s=load_s))
    return costs


def _copy(folder: Path, device: torch.device) -> None:
    for file in folder.glob("*.safetensors"):
        for tensor in load_file(file).values():
            tensor.clone().to(device)
    _wait(device)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
