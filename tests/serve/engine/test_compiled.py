"""torch.compile beneath mixed adapters: the same numbers, and no graph more once the engine is warm."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from hubctl.base_models import locate_base
from hubctl.errors import InputError
from serve.engine.compiled import Compiled
from serve.engine.config import EngineConfig
from serve.engine.generate import ImageEngine
from serve.engine.mix import Mix
from serve.engine.requests import ImageRequest, LoraUse, SegmentRequest
from serve.engine.row_pool import RowPool
from serve.engine.segment import SegmentEngine
from tests.serve import reference, segmenters, tiny, tiny_pipelines
from tests.serve.waiting import until

RANKS = (2, 3, 8, 16)


def graphs() -> int:
    """Made by torch.compile in this process, for whichever backend."""
    return int(counters["stats"]["unique_graphs"])


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.norm, self.other = nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.other(self.norm(self.to_q(x)).relu())


def mix(layers: set[int], rows: int, width: int) -> Mix:
    ids, scale = torch.randint(0, 9, (rows, width)) * bool(layers), torch.randn(rows, width)
    return Mix(ids, scale, None, frozenset(layers), ({},) * rows, rows, None)


@torch.no_grad()
def test_one_graph_for_all_adapters_ranks_and_rows() -> None:
    torch.manual_seed(0)
    net = Net()
    pool = RowPool({"unet": net}, 9)
    pool.a[1:].normal_(), pool.b[1:].normal_()
    plain = net.forward
    Compiled(net, pool, "inductor", targets=["to_q"])
    slots = {slot.layer: slot.index for slot in pool.slots.values()}
    before = graphs()
    for layers, rows, width in [
        ({slots[net.to_q]}, 2, 4),
        ({slots[net.to_q]}, 4, 4),
        ({slots[net.to_q]}, 7, 16),
        (set(), 3, 8),
        ({slots[net.to_q], slots[net.other]}, 3, 4),
    ]:
        pool.mix = mix(layers, rows, width)
        x = torch.randn(rows, 5, 6)
        assert (net(x) - plain(x)).abs().max() <= 1e-5
    assert graphs() - before == 1


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipelines.write_pipeline(tmp_path_factory.mktemp("compiled") / "base", "sd1")


def test_a_warm_engine_compiles_nothing_when_adapters_change(base: Path, tmp_path: Path) -> None:
    settings: list[dict[str, Any]] = [{"rank": rank} for rank in RANKS]
    # What no graph covers runs without one: other layers, and DoRA.
    settings += [{"targets": tiny.CONVOLUTIONS, "strength": 0.2}, {"use_dora": True}]
    settings += [{"text_targets": tiny.TEXT}]
    uses = [
        LoraUse(ref=tiny.pinned(tiny.write_lora(tmp_path / str(i), base, seed=i, **more)), scale=1 - 0.1 * i)
        for i, more in enumerate(settings)
    ]
    plain = ImageRequest(prompt="red apple", seed=7, num_inference_steps=3)
    requests = [
        plain,
        *(replace(plain, seed=i, num_inference_steps=3 + i % 3, loras=(use,)) for i, use in enumerate(uses)),
        replace(plain, guidance_scale=1.0, loras=(uses[0], uses[3])),
        replace(plain, guidance_scale=3.0, num_images=3, loras=(uses[2],)),
    ]
    config = tiny.engine_config(
        total_rows=64, compile="eager", max_batch_rows=15
    )  # of 16 rows oneDNN takes other kernels
    engine = ImageEngine(locate_base(str(base)), config, tiny.fetch)
    try:
        cold = graphs()
        engine.warm_up()
        warm = graphs()
        assert warm == cold + 2  # for one row, and for any other number
        alone = [engine.generate_floats(request) for request in requests]
        with ThreadPoolExecutor(len(requests)) as pool:
            together = list(pool.map(engine.generate_floats, requests))
        assert engine.owner.forwards["unet"] < engine.owner.calls["unet"]
        assert graphs() == warm
    finally:
        engine.close()
    for request, *made in zip(requests, alone, together, strict=True):
        want = reference.images(base, request)
        assert all(np.abs(images - want).max() <= reference.TOLERANCE for images in made), request


def test_a_warm_segmenter_compiles_nothing_when_adapters_change(tmp_path: Path) -> None:
    base = segmenters.write_segmenter(tmp_path / "base", "segformer")
    targets = segmenters.SEGMENTERS["segformer"].targets[:2]
    folders = [
        segmenters.write_adapter(tmp_path / f"lora{i}", base, seed=i, targets=targets, heads=("decode_head",))
        for i in range(3)
    ]
    rng = np.random.default_rng(0)
    requests = [
        SegmentRequest(
            image=rng.integers(0, 256, (48, 64, 3), np.uint8), adapter=LoraUse(ref=tiny.pinned(folder))
        )
        for folder in folders
    ]
    config = tiny.engine_config(compile="eager", max_gather_s=1.0)
    engine = SegmentEngine(locate_base(str(base)), config, tiny.fetch)
    try:
        cold = graphs()
        engine.warm_up()
        warm = graphs()
        assert warm == cold + 2  # for one row, and for any other number
        engine.owner.forwards.clear()
        all_there = threading.Event()
        with ThreadPoolExecutor(4) as pool:
            pool.submit(engine.owner.do, lambda: all_there.wait(60))
            made = [pool.submit(engine.logits, request) for request in requests]
            until(lambda: len(engine.owner._waiting) == 3, within_s=60)
            all_there.set()
        assert engine.owner.forwards["model"] == 1
        assert graphs() == warm
    finally:
        engine.close()
    for request, found in zip(requests, made, strict=True):
        logits = found.result()
        assert (logits - reference.logits(base, request, None)).abs().max() <= 1e-5


def test_offload_and_compile_exclude_each_other() -> None:
    with pytest.raises(InputError, match="compile and offload are both on"):
        EngineConfig(compile="inductor", offload=True)


@pytest.mark.parametrize("kind", ["qwen-image", "z-image"])
def test_bases_that_get_prompts_at_their_own_lengths_are_not_compiled(kind: str, tmp_path: Path) -> None:
    folder = tiny_pipelines.write_pipeline(tmp_path / "base", kind)
    with pytest.raises(InputError, match="anew for every length of a prompt"):
        ImageEngine(locate_base(str(folder)), tiny.engine_config(compile="inductor"), tiny.fetch)
