"""Every kind of adapter that peft makes, in one batch, against peft alone."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from hubctl.adapter.layout import read_layout
from hubctl.errors import AdapterError
from serve.engine.host_rows import read_rows
from serve.engine.mix import PooledUse
from serve.engine.residency import Adapter
from serve.engine.row_pool import HostRows, RowPool
from tests.serve import tiny

SAMPLES, TOKENS, WIDTH, ENTRIES = 6, 5, 12, 30
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"r": 3},
    "rslora": {"r": 4, "lora_alpha": 6, "use_rslora": True},
    "patterns": {"r": 4, "rank_pattern": {"first": 2}, "alpha_pattern": {"conv": 9}},
    "dora": {"r": 3, "lora_alpha": 5, "use_dora": True},
    "dora-linear": {"r": 2, "use_dora": True, "target_modules": ["first", "second"]},
    "embeddings": {"r": 4, "lora_alpha": 2, "target_modules": ["words", "places"]},
}


class Everything(nn.Module):
    """One layer of each kind that LoRA can change."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(ENTRIES, WIDTH), nn.Embedding(TOKENS, WIDTH)
        self.first, self.second = nn.Linear(WIDTH, 16), nn.Linear(16, 8, bias=False)
        self.conv = nn.Conv2d(8, 6, 3, padding=1)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.words(ids) + self.places(torch.arange(TOKENS)[None])
        x = self.second(torch.tanh(self.first(x)))  # (N, T, 8)
        return self.conv(x.transpose(1, 2)[..., None].expand(-1, -1, -1, 3))


def write(folder: Path, name: str, model: nn.Module, seed: int) -> Path:
    """An adapter of the kind `name`, its numbers random, saved by peft."""
    settings = {"target_modules": ["first", "second", "conv", "words"], **KINDS[name]}
    adapted: Any = get_peft_model(copy.deepcopy(model), LoraConfig(**settings))
    generator = torch.Generator().manual_seed(seed)
    for key, value in adapted.named_parameters():
        if "lora_" in key:
            noise = torch.rand(value.shape, generator=generator)
            value.data = value.data * (0.7 + 0.6 * noise) if "magnitude" in key else 0.4 * (noise - 0.5)
    adapted.save_pretrained(folder / name, save_embedding_layers=False)
    return folder / name


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return Everything()


@pytest.fixture(scope="module")
def folders(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("kinds")
    return {name: write(folder, name, model, seed) for seed, name in enumerate(KINDS)}


def _fill(pool: RowPool, value: float) -> None:
    """Have an adapter of every layer in all rows."""
    slots, rows = tuple(pool.slots.values()), range(1, len(pool.a))
    a, b = (
        torch.full((len(rows), sum(columns.stop - columns.start for columns in side)), value)
        for side in ([slot.a for slot in slots], [slot.b for slot in slots])
    )
    pool.write(tuple(rows), HostRows(a, b, slots, len(rows)))


class Pooled:
    """A model with a pool, and every adapter of `folders` in it."""

    def __init__(self, model: nn.Module, folders: dict[str, Path]) -> None:
        self.model = copy.deepcopy(model)
        self.pool = RowPool({"model": self.model}, 64)
        _fill(self.pool, 99.0)  # rows that were freed hold rubbish
        self.uses: dict[str, tuple[Adapter, tuple[int, ...]]] = {}
        free: Iterator[int] = iter(range(63, 0, -1))
        for name, folder in folders.items():
            host = read_rows(read_layout(folder), self.pool, 1 << 20)
            rows = tuple(next(free) for _ in range(host.rows))
            self.pool.write(rows, host)
            layers = frozenset(slot.index for slot in host.slots)
            adapter = Adapter(rank=host.rank, rows=host.rows, layers=layers, heads={}, labels=None)
            self.uses[name] = adapter, rows

    def use(self, name: str, scale: float) -> PooledUse:
        adapter, rows = self.uses[name]
        return PooledUse(rows[: adapter.rank], scale, adapter.layers, {}, rows[adapter.rank :])

    @torch.no_grad()
    def outputs(self, mixes: Sequence[Sequence[tuple[str, float]]], ids: torch.Tensor) -> torch.Tensor:
        calls = [(tuple(self.use(name, scale) for name, scale in mix), 1) for mix in mixes]
        with self.pool.mixed(calls):
            found: torch.Tensor = self.model(ids)
        return found


@torch.no_grad()
def truth(
    model: nn.Module, folders: dict[str, Path], mix: Sequence[tuple[str, float]], ids: torch.Tensor
) -> torch.Tensor:
    """What a peft user gets for one sample."""
    adapted: Any = copy.deepcopy(model)
    for i, (name, scale) in enumerate(mix):
        if i == 0:
            adapted = PeftModel.from_pretrained(adapted, folders[name], name)
        else:
            adapted.load_adapter(folders[name], name)
        for layer in adapted.modules():
            if name in getattr(layer, "scaling", {}):
                layer.scaling[name] *= scale
    if mix:
        adapted.base_model.set_adapter([name for name, _ in mix])
    found: torch.Tensor = adapted.eval()(ids)
    return found


MIXES: dict[str, list[list[tuple[str, float]]]] = {
    "one of each": [
        [("plain", 1.0)],
        [("dora", 1.0)],
        [("embeddings", 1.0)],
        [],
        [("rslora", 0.5)],
        [("patterns", -1.0)],
    ],
    "scaled": [[("dora", 0.3)], [("dora", -1.2)], [("dora-linear", 2.0)], [("embeddings", 0.5)], [], []],
    "several in one request": [
        [("plain", 0.7), ("rslora", 0.4)],
        [("plain", 1.0), ("dora", 0.8)],
        [("dora", 0.8), ("plain", 1.0)],
        [("dora-linear", 0.6), ("plain", 0.5), ("dora", 0.9)],
        [("embeddings", 1.0), ("patterns", 1.0)],
        [("plain", 1.0)],
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", MIXES)
def test_a_mixed_batch_is_what_peft_makes_of_each_sample(
    model: nn.Module, folders: dict[str, Path], name: str
) -> None:
    ids = torch.randint(ENTRIES, (SAMPLES, TOKENS), generator=torch.Generator().manual_seed(1))
    got = Pooled(model, folders).outputs(MIXES[name], ids)
    for i, mix in enumerate(MIXES[name]):
        want = truth(model, folders, mix, ids[i : i + 1])[0]
        assert (got[i] - want).abs().max() < 1e-5, mix
        if mix:
            assert (want - truth(model, folders, [], ids[i : i + 1])[0]).abs().max() > 1e-3


def test_one_high_rank_cannot_make_a_small_file_large(model: nn.Module, folders: dict[str, Path]) -> None:
    pool = RowPool({"model": copy.deepcopy(model)}, 64)
    size = read_rows(read_layout(folders["patterns"]), pool, 1 << 20).size_bytes
    with pytest.raises(AdapterError, match=f"ranks differ: it takes {size:,} bytes"):
        read_rows(read_layout(folders["patterns"]), pool, size - 1)


def test_settings_that_contradict_the_file(folders: dict[str, Path], tmp_path: Path) -> None:
    for name, says in (("dora", True), ("plain", False)):
        folder = tmp_path / name
        shutil.copytree(folders[name], folder)
        tiny.rewrite_config(folder, "adapter_config.json", use_dora=not says)
        with pytest.raises(AdapterError, match="whether it uses DoRA"):
            read_layout(folder)
