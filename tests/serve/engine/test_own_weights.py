"""Weights of the samples' own: which layers get them, what is in them, when a pool makes and drops them."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from serve.engine.mix import PooledUse, Uses
from serve.engine.own_weights import Met, can_keep, own_weights, through_own_weights, worth_keeping
from serve.engine.row_pool import HostRows, RowPool

_LAYERS = {"wide": Met(4096, 640, 640), "narrow": Met(64, 320, 320), "text": Met(77, 2048, 1280)}
_MANY_BYTES = 1 << 30


@pytest.mark.parametrize(
    ("room", "kept"),
    [
        pytest.param(1 << 30, ["wide", "narrow"], id="text: longer to read its weight than to add the rows"),
        pytest.param(640 * 640, ["wide"], id="just enough"),
        pytest.param(640 * 640 - 1, ["narrow"], id="too little by one: what else fits"),
        pytest.param(0, [], id="none"),
    ],
)
def test_which_layers_are_worth_it(room: int, kept: list[str]) -> None:
    assert worth_keeping(_LAYERS, room=room) == kept


def test_what_is_worth_most_comes_first() -> None:
    layers = {n: Met(tokens, 320, 320) for n, tokens in enumerate((1024, 4096, 2048))}
    assert worth_keeping(layers, room=2 * 320 * 320) == [1, 2]


@given(
    layers=st.dictionaries(
        st.integers(), st.builds(Met, st.integers(1, 9999), st.integers(1, 999), st.integers(1, 999))
    ),
    room=st.integers(0, 1 << 22),
)
def test_no_more_than_there_is_room_for_and_nothing_left_out(layers: dict[int, Met], room: int) -> None:
    kept = worth_keeping(layers, room=room)
    left = room - sum(layers[key].numbers for key in kept)
    assert left >= 0
    assert all(layers[key].worth > 0.4 for key in kept)
    assert all(layers[key].worth <= 0.4 or layers[key].numbers > left for key in set(layers) - set(kept))


@pytest.mark.parametrize(
    ("layer", "dtype", "can"),
    [
        pytest.param(nn.Linear(300, 300), torch.float32, True, id="small"),
        pytest.param(nn.Linear(400, 400), torch.float32, False, id="beyond a processor's cache"),
        pytest.param(nn.Linear(30, 30).half(), torch.float16, False, id="half precision"),
        pytest.param(nn.Linear(30, 30).bfloat16(), torch.float32, False, id="another input"),
    ],
)
def test_what_a_cpu_can_keep(layer: nn.Linear, dtype: torch.dtype, can: bool) -> None:
    assert can_keep(layer, torch.ones(1, layer.in_features, dtype=dtype)) == can


def _rows(samples: int, rank: int, layer: nn.Linear, size: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A and b of each sample, of the layer's dtype."""
    a = torch.randn(samples, rank, layer.in_features) / layer.in_features**0.5
    b = size * torch.randn(samples, rank, layer.out_features)
    return a.to(layer.weight.dtype), b.to(layer.weight.dtype)


def _exact(layer: nn.Linear, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return layer.weight.double().T + a.double().mT @ b.double()


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
def test_float32(bias: bool) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(48, 32, bias=bias), torch.randn(6, 5, 48)
    a, b = _rows(3, 4, layer, 0.5)
    found = through_own_weights(layer, x, own_weights(layer, a, b, seed=0)).double()
    for n, weight in enumerate(_exact(layer, a, b)):
        want = x[2 * n : 2 * n + 2].double() @ weight + (layer.bias.double() if bias else 0)
        assert (found[2 * n : 2 * n + 2] - want).abs().max() < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_a_neighbour_of_what_is_exact_and_the_base_stays_itself(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(256, 128).to(dtype)
    a, b = _rows(3, 8, layer, 0.02)
    b[1] = 0
    found, want = own_weights(layer, a, b, seed=3), _exact(layer, a, b)
    up = torch.nextafter(found.abs(), torch.tensor(torch.inf, dtype=dtype))
    assert ((found.double() - want).abs() <= 1.01 * (up.double() - found.abs().double())).all()
    assert torch.equal(found[1], layer.weight.T)
    assert torch.equal(own_weights(layer, a[2:], b[2:], seed=3)[0], found[2])  # whoever is beside it
    assert not torch.equal(own_weights(layer, a, b, seed=4), found)


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "step"), [(torch.float16, 2.0**-16), (torch.bfloat16, 2.0**-13)])
def test_what_is_less_than_a_step_in_every_number_changes_the_output_all_the_same(
    dtype: torch.dtype, step: float
) -> None:
    """An adapter at a tenth of a step: what rounding to the nearest takes away, chance gives back."""
    torch.manual_seed(0)
    layer = nn.Linear(1280, 1280, bias=False).to(dtype)
    layer.weight.copy_(0.02 * (2 * torch.randint(2, layer.weight.shape) - 1))  # where steps are as given
    direction = torch.ones(1, 1280, dtype=dtype)
    a, b = direction[None], (step / 10 * torch.ones(1, 1, 1280)).to(dtype)
    change = b[0].double() * 1280  # of the output, for an input of ones
    nearest = _exact(layer, a, b).to(dtype)
    assert torch.equal(nearest[0], layer.weight.T)
    found = direction.double() @ (own_weights(layer, a, b, seed=0)[0].double() - layer.weight.T.double())
    assert abs(found.mean() / change.mean() - 1) < 0.02


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [0.03, 0.003])
def test_half_precision_errs_little_more_than_rows_do(dtype: torch.dtype, size: float) -> None:
    """Of a layer as wide as SDXL's, with changes of the usual size beside its weight."""
    torch.manual_seed(0)
    layer, x = nn.Linear(640, 640).to(dtype), torch.randn(64, 640).to(dtype)
    a, b = _rows(1, 16, layer, 1.0)
    b *= size * layer.weight.float().norm() / (a[0].float().mT @ b[0].float()).norm()
    want = x.double() @ _exact(layer, a, b)[0] + layer.bias.double()
    rows = (layer(x) + x @ a[0].mT @ b[0]).double()
    own = through_own_weights(layer, x, own_weights(layer, a, b, seed=0)).double()
    assert (own - want).norm() < 1.5 * (rows - want).norm()


def _model(dtype: torch.dtype = torch.float32, device: str = "cpu") -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 48), nn.Tanh(), nn.Linear(48, 32)).to(device, dtype)


def _calls(pool: RowPool, size: float = 0.3) -> list[tuple[Uses, int]]:
    """Two requests of two rows, each with an adapter of its own in all layers."""
    calls: list[tuple[Uses, int]] = []
    slots = tuple(pool.slots.values())
    for rows in ((1, 2, 3), (4, 5, 6)):
        a, b = torch.randn(3, pool.a.shape[1]) / 6, size * torch.randn(3, pool.b.shape[1])
        pool.write(rows, HostRows(a.to(pool.a.dtype), b.to(pool.b.dtype), slots, 3))
        calls.append(((PooledUse(rows, 0.5, frozenset(s.index for s in slots), {}),), 2))
    return calls


def _forget(pool: RowPool) -> None:
    """What was gathered: the pool knows only the last calls."""
    with pool.mixed([]):
        pass


class _Counted:
    """A model's forwards in a pool, and how much each computes."""

    def __init__(self) -> None:
        self.model = _model()
        pristine = copy.deepcopy(self.model)
        self.pool = RowPool({"unet": self.model}, 8)
        self.calls = _calls(self.pool)
        self.x = torch.randn(4, 64, 32)
        self.alone = self._flops(pristine)
        with torch.no_grad(), self.pool.mixed(self.calls):
            self.want = self.model(self.x)
        _forget(self.pool)

    @torch.no_grad()
    def flops(self, weights_bytes: int | None = None) -> int:
        """Of a forward, whose answer must be the one of rows."""
        with self.pool.mixed(self.calls, weights_bytes):
            found = self._flops(self.model)
        return found

    def _flops(self, model: nn.Module) -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            y = model(self.x)
        if hasattr(self, "want"):
            assert torch.allclose(y, self.want, atol=1e-5)
        return counter.get_total_flops()


def test_a_loop_computes_no_more_than_the_base_from_its_second_forward_on() -> None:
    each = _Counted()
    first, second, third = (each.flops(_MANY_BYTES) for _ in range(3))
    assert first > second == third == each.alone


def test_what_a_first_forward_leaves_free_is_known_only_afterwards() -> None:
    each = _Counted()
    rows = each.flops(0)
    assert each.flops(_MANY_BYTES) == each.alone < rows


def test_what_is_no_loop_keeps_its_rows() -> None:
    """A text encoder may run before the loop, for the very same calls."""
    each = _Counted()
    rows = each.flops()
    assert [each.flops(), each.flops(_MANY_BYTES), each.flops(_MANY_BYTES)] == [rows] * 3


def test_where_there_is_room_for_one_layer_the_other_keeps_its_rows() -> None:
    each = _Counted()
    rows = each.flops(_MANY_BYTES)
    assert each.alone < each.flops(2 * 4 * 32 * 48) < rows  # two samples of float32


def test_memory_that_runs_out_lets_the_weights_go() -> None:
    each = _Counted()
    rows, own = each.flops(_MANY_BYTES), each.flops(_MANY_BYTES)
    assert own < rows
    with pytest.raises(torch.OutOfMemoryError), each.pool.mixed(each.calls, _MANY_BYTES):
        raise torch.OutOfMemoryError
    assert each.flops(_MANY_BYTES) == rows


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize(("dtype", "most"), [(torch.float16, 1e-2), (torch.bfloat16, 1e-1)])
@torch.no_grad()
def test_half_precision_on_a_gpu(dtype: torch.dtype, most: float) -> None:
    model = _model(dtype, "cuda")
    pool = RowPool({"unet": model}, 8)
    calls, x = _calls(pool), torch.randn(4, 64, 32, device="cuda").to(dtype)
    answers = []
    for weights_bytes in (None, _MANY_BYTES, _MANY_BYTES):
        with pool.mixed(calls, weights_bytes):
            answers.append(model(x))
        if weights_bytes is None:
            _forget(pool)
    rows, again, own = answers
    assert torch.equal(rows, again)
    assert not torch.equal(rows, own)
    assert (rows - own).abs().max() < most
