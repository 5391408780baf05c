from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from serve.engine.mix import PooledUse, Uses
from serve.engine.row_pool import HostRows, RowPool

SAMPLES = 4


@dataclass(frozen=True)
class Adapter:
    """A LoRA for one layer: `a` (r, in[, k, k]), `b` (out, r), and its place in the pool."""

    a: torch.Tensor
    b: torch.Tensor
    rows: tuple[int, ...]

    def use(self, scale: float) -> PooledUse:
        return PooledUse(self.rows, scale, frozenset({0}), {})


def _pool(layer: nn.Module, ranks: Sequence[int]) -> tuple[RowPool, list[Adapter]]:
    """A pool over one layer, with random adapters in neighbouring rows; freed rows hold rubbish."""
    pool = RowPool({"model": nn.Sequential(layer)}, total_rows=32)
    pool.a[1:], pool.b[1:] = 99.0, 99.0
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    adapters, first = [], 1
    for rank in ranks:
        a = torch.randn(rank, *weight.shape[1:]) / weight[0].numel() ** 0.5
        b = torch.randn(weight.shape[0], rank)
        rows = tuple(range(first, first + rank))
        (slot,) = pool.slots.values()
        pool.write(rows, HostRows(a.flatten(1), b.T, (slot,), rank))
        adapters.append(Adapter(a, b, rows))
        first += rank
    return pool, adapters


def _dense(layer: nn.Module, adapters: Sequence[tuple[Adapter, float]]) -> nn.Module:
    """The layer with the adapters added to its weight."""
    merged = copy.deepcopy(layer)
    weight = merged.weight
    assert isinstance(weight, nn.Parameter)
    for adapter, scale in adapters:
        weight.data += scale * (adapter.b @ adapter.a.flatten(1)).view(weight.shape)
    return merged


@torch.no_grad()
def _largest_difference(layer: nn.Module, x: torch.Tensor, rows_per_sample: int = 1) -> float:
    torch.manual_seed(0)
    pristine = copy.deepcopy(layer)
    pool, (small, large) = _pool(layer, [2, 5])
    mixes = [[(small, 1.0)], [(large, 0.5)], [(small, 0.3), (large, -1.0)], []]
    calls: list[tuple[Uses, int]] = [(tuple(a.use(s) for a, s in mix), 1) for mix in mixes]
    with pool.mixed(calls, weights_bytes=1 << 20):
        y = layer(x)
    with pool.mixed(calls, weights_bytes=1 << 20):  # from what was kept
        again = layer(x)
    assert pool.mix is None
    pieces = torch.split(x, rows_per_sample)
    want = torch.cat([_dense(pristine, mix)(piece) for mix, piece in zip(mixes, pieces, strict=True)])
    assert not torch.allclose(want, pristine(x), atol=1e-2)
    assert torch.equal(layer(x), pristine(x))
    return float(max((y - want).abs().max(), (again - want).abs().max()))


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param((SAMPLES, 7, 16), id="tokens"),
        pytest.param((SAMPLES, 16), id="one token each"),
        pytest.param((SAMPLES, 2, 3, 16), id="a map of tokens"),
    ],
)
def test_linear(shape: tuple[int, ...]) -> None:
    assert _largest_difference(nn.Linear(16, 24), torch.randn(*shape)) < 1e-5


def test_rows_that_are_pieces_of_samples() -> None:
    """Windowed attention: three rows of the layer's input for each sample, side by side."""
    x = torch.randn(SAMPLES * 3, 7, 16)
    assert _largest_difference(nn.Linear(16, 24), x, rows_per_sample=3) < 1e-5


@torch.no_grad()
def test_rows_apart_from_each_other_and_rows_that_are_filled_anew() -> None:
    """The pool remembers what a layer gathered, but not for another adapter in the same rows."""
    layer = nn.Linear(16, 24)
    pristine = copy.deepcopy(layer)
    pool, _ = _pool(layer, [2])
    (slot,) = pool.slots.values()
    rows, x = (3, 7, 8), torch.randn(2, 16)
    for seed in (1, 2):
        torch.manual_seed(seed)
        adapter = Adapter(torch.randn(3, 16), torch.randn(24, 3), rows)
        pool.write(rows, HostRows(adapter.a, adapter.b.T, (slot,), 3))
        calls: list[tuple[Uses, int]] = [((adapter.use(0.5),), 2)]
        want = _dense(pristine, [(adapter, 0.5)])(x)
        for _ in range(2):  # the second time from what was gathered
            with pool.mixed(calls):
                assert torch.allclose(layer(x), want, atol=1e-5)


def test_rows_that_no_sample_has() -> None:
    layer = nn.Linear(16, 24)
    pool, (adapter,) = _pool(layer, [2])
    with pool.mixed([((adapter.use(1.0),), 4)]), pytest.raises(RuntimeError, match="6 rows"):
        layer(torch.randn(6, 16))


@pytest.mark.parametrize(
    "layer",
    [
        pytest.param(nn.Conv2d(6, 10, 3, padding=1), id="3x3"),
        pytest.param(nn.Conv2d(6, 10, 3, stride=2, padding=1), id="strided"),
        pytest.param(nn.Conv2d(6, 10, 1), id="1x1"),
        pytest.param(nn.Conv2d(6, 10, 1, stride=2), id="1x1 strided"),
        pytest.param(nn.Conv2d(6, 10, (1, 3), padding="same"), id="same padding"),
        pytest.param(nn.Conv2d(6, 10, 7, stride=4, padding=3), id="patch embedding"),
    ],
)
def test_convolution(layer: nn.Conv2d) -> None:
    assert _largest_difference(layer, torch.randn(SAMPLES, 6, 9, 11)) < 1e-5


def test_a_call_of_several_rows_uses_its_adapters_in_all_of_them() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(16, 24)
    pristine = copy.deepcopy(layer)
    pool, (adapter,) = _pool(layer, [3])
    x = torch.randn(5, 16)
    with torch.no_grad(), pool.mixed([((adapter.use(2.0),), 3), ((), 2)]):
        y = layer(x)
        assert torch.allclose(y[:3], _dense(pristine, [(adapter, 2.0)])(x[:3]), atol=1e-5)
        assert torch.allclose(y[3:], pristine(x[3:]), atol=1e-5)


def test_layers_that_lora_cannot_change_have_no_slot() -> None:
    model = nn.Sequential(
        nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 3, dilation=2), nn.LayerNorm(4), nn.Linear(4, 4)
    )
    assert list(RowPool({"unet": model}, 4).slots) == ["unet.3"]


def test_an_adapter_of_other_layers_costs_a_layer_nothing() -> None:
    layer = nn.Linear(16, 24)
    pool, _ = _pool(layer, [2])
    with pool.mixed([((PooledUse((1, 2), 1.0, frozenset({7}), {}),), 4)]):
        assert torch.equal(layer(torch.ones(4, 16)), layer(torch.ones(4, 16)))
        assert not layer(torch.ones(4, 16)).isnan().any()


def test_the_rows_lie_where_the_layers_run() -> None:
    pool = RowPool({"model": nn.Sequential(nn.Linear(4, 6))}, 4, torch.device("meta"))
    assert (pool.a.device.type, pool.b.device.type) == ("meta", "meta")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_load_does_not_wait_for_the_forwards_under_way() -> None:
    """Nor may it come back before the rows are whole."""
    pool = RowPool({"model": nn.Sequential(nn.Linear(4, 6).cuda())}, 8)
    (slot,) = pool.slots.values()
    loads = [HostRows(torch.full((2, 4), n), torch.full((2, 6), n), (slot,), 2) for n in (1.0, 2.0)]
    pool.write((1, 2), loads[0])  # the first one may have to get memory
    torch.cuda._sleep(1 << 31)  # clock cycles: about a second
    pool.write((3, 4), loads[1])
    assert not torch.cuda.current_stream().query()
    torch.cuda.synchronize()
    assert pool.a[1:5, slot.a].cpu().equal(torch.tensor([1.0, 1.0, 2.0, 2.0])[:, None].expand(4, 4))
