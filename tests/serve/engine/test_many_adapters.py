"""A thousand adapters known, a hundred in rows: what is loaded, what stays, what goes. Counted, not timed."""

from __future__ import annotations

import random
import shutil
from collections import Counter, OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hubctl.base_models import locate_base
from hubctl.refs import PinnedRef
from serve.engine.generate import ImageEngine
from serve.engine.requests import ImageRequest, LoraUse
from serve.engine.residency import Residency
from tests.serve import tiny, tiny_pipelines

KNOWN, IN_ROWS, RANK = 1000, 100, 4
THREADS = 8
WEIGHTS = "pytorch_lora_weights.safetensors"


@dataclass(frozen=True)
class World:
    """An engine with rows for a hundred adapters, and a thousand folders: number i holds B times i + 1."""

    engine: ImageEngine
    folder: Path
    fetched: Counter[int]
    """How often each was read."""
    layer: str
    b: torch.Tensor
    """(rank, out) of adapter 0 in `layer`, from its file."""

    def use(self, i: int) -> LoraUse:
        return LoraUse(ref=PinnedRef(f"tests/{i}", "main", f"{i:040}", "5" * 64))

    def lease(self, residency: Residency, i: int) -> None:
        """Use adapter `i`, and see that it is its own numbers that lie in its rows."""
        pool = self.engine._core.pool
        with residency.lease([self.use(i)], None) as (pooled,):
            found = pool.b[list(pooled.rows), pool.slots[self.layer].b]
            assert torch.equal(found, self.b * (i + 1)), i

    def numbers(self, residency: Residency) -> list[int]:
        """The adapters in rows, the least recently used first; no row is lost, and none is given twice."""
        assert residency.rows_free + RANK * len(residency.resident) == RANK * IN_ROWS
        entries = residency._ledger._entries.values()
        taken = [row for entry in entries for row in entry.rows]
        assert len(set(taken)) == len(taken) == RANK * len(residency.resident)
        assert not any(entry.leases for entry in entries)
        return [int(ref.commit) for ref in residency.resident]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    base = tiny_pipelines.write_pipeline(tmp_path / "base", "sd1")
    sound = tiny.write_lora(tmp_path / "sound", base, seed=1, rank=RANK, strength=1e-3) / WEIGHTS
    tensors = load_file(sound)
    with safe_open(sound, framework="pt") as file:
        metadata = file.metadata()
    for i in range(KNOWN):
        changed = {key: value * (i + 1) if "lora_B" in key else value for key, value in tensors.items()}
        (tmp_path / "shelf" / str(i)).mkdir(parents=True)
        save_file(changed, tmp_path / "shelf" / str(i) / WEIGHTS, metadata=metadata)
    fetched: Counter[int] = Counter()

    def fetch(ref: PinnedRef) -> Path:
        fetched[int(ref.commit)] += 1
        return tmp_path / "shelf" / str(int(ref.commit))

    # Host memory for one alone: whatever is not in rows must be read from its file.
    config = tiny.engine_config(total_rows=RANK * IN_ROWS + 1, host_bytes=1)
    engine = ImageEngine(locate_base(str(base)), config, fetch)
    key = next(key for key in tensors if "lora_B" in key)
    yield World(engine, tmp_path / "shelf", fetched, key.removesuffix(".lora_B.weight"), tensors[key].T)
    engine.close()


def test_the_least_recently_used_go_and_each_miss_reads_once(world: World) -> None:
    chance = random.Random(0)
    residency, wanted = world.engine._core.residency, Counter[int]()
    recent: OrderedDict[int, None] = OrderedDict()  # what an LRU of a hundred holds
    for _ in range(2500):
        i = min(int(chance.paretovariate(0.5)), KNOWN) - 1  # a few are asked for often, most of them rarely
        if i not in recent:
            wanted[i] += 1
        recent[i] = None
        recent.move_to_end(i)
        if len(recent) > IN_ROWS:
            recent.popitem(last=False)
        world.lease(residency, i)
        assert world.fetched[i] == wanted[i]
    assert world.numbers(residency) == list(recent)
    assert world.fetched == wanted
    assert len(wanted) > 2 * IN_ROWS  # many were evicted
    assert max(wanted.values()) > 1  # and came back
    assert wanted.total() < 2000  # and many were there


def test_what_is_in_rows_is_used_without_its_files(world: World) -> None:
    engine, residency = world.engine, world.engine._core.residency
    for i in range(IN_ROWS):
        world.lease(residency, i)
    request = ImageRequest(prompt="dog", seed=2, num_inference_steps=1, loras=(world.use(7),))
    (before,) = engine.generate(request).images
    world.fetched.clear()
    shutil.rmtree(world.folder)
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda i: world.lease(residency, i % IN_ROWS), range(20 * IN_ROWS)))
    (after,) = engine.generate(request).images
    assert np.abs(before.astype(int) - after).max() <= 1
    assert not world.fetched


def test_threads_that_miss_together_read_once(world: World) -> None:
    """With host memory for all, each of the thousand is read once, however often its rows are taken."""
    core = world.engine._core
    residency = Residency(core.pool, core._load, total_rows=core.config.total_rows, host_bytes=1 << 30)
    wanted = [i for i in range(KNOWN) for _ in range(4)]  # four threads come for the same one at once
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda i: world.lease(residency, i), wanted))
    assert world.fetched == Counter(range(KNOWN))
    assert len(world.numbers(residency)) == IN_ROWS
