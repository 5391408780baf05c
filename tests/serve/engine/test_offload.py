from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hubctl.base_models import locate_base
from hubctl.errors import InputError
from serve.engine.generate import ImageEngine
from serve.engine.offload import Offload
from serve.engine.requests import Control, ImageRequest, LoraUse
from serve.engine.segment import SegmentEngine
from tests.serve import reference, tiny, tiny_pipelines

ELSEWHERE = [
    # The only device beside the CPU that every machine has: tensors move onto it, and have no numbers there.
    torch.device("meta"),
    pytest.param(
        torch.device("cuda"),
        marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")],
    ),
]


class Tied(nn.Module):
    """A module with a buffer and two layers that share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 3)
        self.last.weight = self.first.weight
        self.register_buffer("count", torch.ones(2))
        self.register_buffer("absent", None)


def devices(module: nn.Module) -> set[str]:
    return {tensor.device.type for tensor in [*module.parameters(), *module.buffers()]}


@pytest.mark.parametrize("device", ELSEWHERE)
def test_only_the_group_that_runs_is_on_the_device(device: torch.device) -> None:
    text, denoiser, control, vae = nn.Linear(2, 2), Tied(), nn.Linear(2, 2), nn.BatchNorm2d(2)
    offload = Offload([[text], [denoiser, control], [vae]], device)
    modules = [text, denoiser, control, vae]

    def present() -> list[nn.Module]:
        return [module for module in modules if devices(module) == {device.type}]

    assert present() == []
    for brought, expected in [
        (text, [text]),
        (denoiser, [denoiser]),
        (control, [denoiser, control]),
        (denoiser, [denoiser, control]),
        (vae, [vae]),
        (control, [control]),
        (text, [text]),
    ]:
        offload.bring(brought)
        assert present() == expected
        assert [module for module in modules if devices(module) == {"cpu"}] == [
            module for module in modules if module not in expected
        ]
        assert offload.present == set(expected)


@pytest.mark.parametrize("device", ELSEWHERE)
def test_weights_come_back_as_they_were(device: torch.device) -> None:
    module, other = Tied(), nn.Linear(1, 1)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    keys = list(before)
    offload = Offload([[module], [other]], device)
    offload.bring(module)
    assert module.first.weight is module.last.weight
    assert isinstance(module.first.weight, nn.Parameter)
    offload.bring(other)
    assert module.first.weight is module.last.weight
    after = module.state_dict()
    assert list(after) == keys
    assert all(torch.equal(after[name], before[name]) for name in keys)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipelines.write_pipeline(tmp_path_factory.mktemp("offload") / "base", "sdxl")


def test_an_engine_brings_each_module_before_it_runs(base: Path, tmp_path: Path) -> None:
    controlnet = tiny_pipelines.write_controlnet(tmp_path / "control", base)
    adapters = [
        LoraUse(ref=tiny.pinned(tiny.write_lora(tmp_path / "plain", base, seed=1, text_targets=tiny.TEXT))),
        LoraUse(ref=tiny.pinned(tiny.write_lora(tmp_path / "dora", base, seed=2, use_dora=True))),
    ]
    plain = ImageRequest(prompt="apple", seed=1, num_inference_steps=2, width=32, height=32)
    edges = Control(name="edges", image=np.full((32, 32, 3), 90, np.uint8))
    requests = [
        replace(plain, loras=(adapters[0],)),
        replace(plain, seed=2, loras=tuple(adapters), control=edges),
        replace(plain, seed=3, image=np.full((32, 32, 3), 90, np.uint8), strength=0.9),
    ]
    config = tiny.engine_config(total_rows=16, offload=True, controlnets={"edges": str(controlnet)})
    engine = ImageEngine(locate_base(str(base)), config, tiny.fetch)
    offload, seen = engine._offload, set()
    assert offload
    names = {methods[0].module: name for name, methods in (engine._shared | engine._controls).items()}
    for module in names:
        run: Any = module.decoder if names[module] == "vae" else module
        run.register_forward_pre_hook(
            lambda *_, name=names[module]: seen.add((name, frozenset(names[m] for m in offload.present)))
        )
    try:
        with ThreadPoolExecutor(len(requests)) as pool:
            made = list(pool.map(engine.generate_floats, requests))
    finally:
        engine.close()
    for request, images in zip(requests, made, strict=True):
        want = reference.images(base, request, controlnet)
        assert np.abs(images - want).max() <= reference.TOLERANCE
    together = frozenset({"unet", "edges"})
    assert {name: {others - together for n, others in seen if n == name} for name, _ in seen} == {
        **{name: {frozenset({name})} for name in ("text_encoder", "text_encoder_2", "vae")},
        "unet": {frozenset()},
        "edges": {frozenset()},
    }
    assert all(name in others for name, others in seen)


def test_a_base_of_one_module_has_nothing_to_offload() -> None:
    with pytest.raises(InputError, match="offload is for bases of several modules"):
        SegmentEngine(locate_base("emoji-64-seg"), tiny.engine_config(offload=True), tiny.fetch)
