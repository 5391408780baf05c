"""Merged adapters against peft's own `add_weighted_adapter` on a tree of bare layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn

from hubctl.adapter.contents import read_adapter
from hubctl.adapter.derive import Share, merged
from hubctl.adapter.layers import Layer
from hubctl.adapter.merge import METHODS, Method
from hubctl.errors import AdapterError, AdapterMismatchError, InputError
from tests.adapters import write_tensors
from tests.hubctl.adapter.random_lora import dense, layer, write

SIZES: dict[str, tuple[int, tuple[int, ...]]] = {
    "linear": (12, (10,)),
    "block.conv": (6, (5, 3, 3)),
    "block.point": (8, (6, 1, 1)),
}


class Bare(nn.Module):
    """The layers of the adapters and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(10, 12)
        self.block = nn.ModuleDict({"conv": nn.Conv2d(5, 6, 3), "point": nn.Conv2d(6, 8, 1)})


def layers(names: str, *, seed: int, **more: Any) -> list[Layer]:
    return [
        layer(name, component="model", out=SIZES[name][0], inside=SIZES[name][1], seed=seed + i, **more)
        for i, name in enumerate(names.split())
    ]


def of_peft(
    folders: list[Path], weights: list[float], method: Method, rank: int | None
) -> dict[str, torch.Tensor]:
    model = PeftModel.from_pretrained(Bare(), folders[0], adapter_name="0")
    for i, folder in enumerate(folders[1:], start=1):
        model.load_adapter(folder, adapter_name=str(i))
    names = [str(i) for i in range(len(folders))]
    model.base_model.add_weighted_adapter(names, weights, "all", combination_type=method, svd_rank=rank)
    return {
        name: module.get_delta_weight("all").flatten(1)
        for name, module in model.base_model.model.named_modules()
        if "all" in getattr(module, "lora_A", {})
    }


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("weights", [[0.7, 0.3], [1.5, -0.5]], ids=str)
def test_the_sum_is_peft_s(method: Method, weights: list[float], tmp_path: Path) -> None:
    other = {} if method == "linear" else {"rank": 3}
    one = write(tmp_path / "a", *layers("linear block.conv", seed=1, alpha=8.0), dialect="peft")
    two = write(
        tmp_path / "b", *layers("linear block.conv block.point", seed=5, alpha=2.0, **other), dialect="peft"
    )
    rank = 2 if method == "svd" else None
    shares = [Share(name=f.name, path=f, weight=w) for f, w in zip((one, two), weights, strict=True)]
    made = merged(shares, tmp_path / "all", method, rank=rank)

    expected = of_peft([one, two], weights, method, rank)
    assert {one.module for one in made.layers} == expected.keys()
    for found in made.layers:
        written = torch.tensor(dense(found), dtype=torch.float32)
        torch.testing.assert_close(written, expected[found.module], atol=2e-5, rtol=1e-4)
        assert found.scale == 1
    ranks = {"linear": {4}, "cat": {7, 3}, "svd": {2}}[method]
    assert {found.rank for found in made.layers} == ranks
    assert read_adapter(tmp_path / "all").layers == made.layers
    loaded = PeftModel.from_pretrained(Bare(), tmp_path / "all")
    torch.testing.assert_close(
        loaded.base_model.model.linear.get_delta_weight("default"), expected["linear"], atol=2e-5, rtol=1e-4
    )


def test_svd_of_all_ranks_is_exact(tmp_path: Path) -> None:
    one, two = (layers("linear", seed=seed, rank=rank) for seed, rank in ((1, 3), (2, 4)))
    shares = [
        Share(name=n, path=write(tmp_path / n, *part, dialect="peft"), weight=0.5)
        for n, part in (("a", one), ("b", two))
    ]
    made = merged(shares, tmp_path / "out", "svd", rank=100)
    assert made.layers[0].rank == 7
    exact = (dense(one[0]) + dense(two[0])) / 2
    torch.testing.assert_close(torch.tensor(dense(made.layers[0])), torch.tensor(exact), atol=1e-5, rtol=1e-5)


def test_words_are_no_weights_to_add_up(tmp_path: Path) -> None:
    one, two = (write(tmp_path / name, layer()) for name in ("one", "two"))
    write_tensors(two / "embeddings.safetensors", {"clip_l": (1, 8)})
    shares = [Share(name=path.name, path=path, weight=1) for path in (one, two)]
    with pytest.raises(AdapterError, match="two has new tokens"):
        merged(shares, tmp_path / "out", "cat")


def test_what_does_not_add_up_is_refused(tmp_path: Path) -> None:
    plain = write(tmp_path / "plain", *layers("linear", seed=1), dialect="peft")
    dora = write(
        tmp_path / "dora",
        *layers("linear", seed=2, magnitude=layer(out=12, inside=(1,), rank=1).b.reshaped(12)),
        dialect="peft",
    )
    small = write(tmp_path / "small", layer("linear", component="model", out=3), dialect="peft")
    low = write(tmp_path / "low", *layers("linear", seed=1, rank=2), dialect="peft")

    def both(other: Path, method: Method = "cat", rank: int | None = None) -> None:
        shares = [Share(name=str(path), path=path, weight=1) for path in (plain, other)]
        merged(shares, tmp_path / "out", method, rank=rank)

    with pytest.raises(AdapterError, match=r"'model\.linear' is DoRA"):
        both(dora)
    with pytest.raises(AdapterMismatchError, match="12x10 in one adapter and 3x10 in another"):
        both(small)
    with pytest.raises(InputError, match="has ranks 2, 4"):
        both(low, "linear")
    with pytest.raises(InputError, match="'cat' has no rank to choose"):
        both(low, rank=2)
    assert not (tmp_path / "out").exists()
