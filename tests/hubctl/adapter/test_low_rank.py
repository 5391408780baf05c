"""Norms, angles and truncation from the factors, against numpy on the matrices written out."""

from __future__ import annotations

import numpy as np
import pytest

from hubctl.adapter.layers import Layer
from hubctl.adapter.low_rank import cosine, distance, factors, inner, stacked, truncated, with_factors
from hubctl.adapter.tensors import from_array, number, scalar, to_array
from tests.hubctl.adapter.random_lora import dense, layer

PAIRS = [
    (layer(seed=1, alpha=8), layer(seed=2, rank=3)),
    (layer(seed=1, inside=(5, 3, 3), alpha=2), layer(seed=2, inside=(5, 3, 3))),
    (layer(seed=1, rank=16, out=6), layer(seed=2, alpha=-3)),  # a rank above the layer's own width
    (layer(seed=1, rslora=True), layer(seed=1, rank=4)),
]


@pytest.mark.parametrize(("one", "two"), PAIRS)
def test_products_and_distances_are_those_of_the_matrices(one: Layer, two: Layer) -> None:
    if one.b.shape[0] != two.b.shape[0]:
        two = layer(seed=2, alpha=-3, out=one.b.shape[0])
    x, y, w, v = factors(one), factors(two), dense(one), dense(two)
    assert x.norm == pytest.approx(np.linalg.norm(w), rel=1e-12)
    assert inner(x, y) == pytest.approx((w * v).sum(), rel=1e-9)
    assert distance(x, y) == pytest.approx(np.linalg.norm(w - v), rel=1e-9)
    assert cosine(x, y) == pytest.approx((w * v).sum() / np.linalg.norm(w) / np.linalg.norm(v), rel=1e-9)
    total = stacked([x, y])
    np.testing.assert_allclose(total.b @ total.a, w + v, atol=1e-12)


@pytest.mark.parametrize("rank", [1, 2, 3, 10])
@pytest.mark.parametrize("one", [PAIRS[0][0], PAIRS[1][0], PAIRS[2][0]])
def test_truncation_is_the_svd_s(one: Layer, rank: int) -> None:
    x = factors(one)
    cut = truncated(x, rank)
    w = dense(one)
    u, s, v = np.linalg.svd(w, full_matrices=False)
    np.testing.assert_allclose(cut.b @ cut.a, (u[:, :rank] * s[:rank]) @ v[:rank], atol=1e-12)
    assert len(cut.a) == min(rank, one.rank, *w.shape)
    assert distance(x, cut) == pytest.approx(np.sqrt((s[rank:] ** 2).sum()), abs=1e-6)


def test_an_untrained_layer_has_no_direction() -> None:
    zero = layer(seed=1)
    zero = with_factors(zero, type(factors(zero))(factors(zero).a, 0 * factors(zero).b), 4)
    assert factors(zero).norm == 0
    assert cosine(factors(zero), factors(layer(seed=2))) is None
    np.testing.assert_array_equal(truncated(factors(zero), 2).b, 0)


def test_bfloat16_is_rounded_as_torch_rounds_it() -> None:
    torch = pytest.importorskip("torch")
    values = np.random.default_rng(0).standard_normal(1000) * 10.0 ** np.arange(-20, 20).repeat(25)
    expected = torch.tensor(values, dtype=torch.float32).to(torch.bfloat16)
    ours = from_array(values, "BF16")
    assert ours.data == expected.view(torch.int16).numpy().tobytes()
    np.testing.assert_array_equal(to_array(ours), expected.to(torch.float64).numpy())
    assert number(from_array(np.array(0.5), "BF16")) == number(scalar(0.5)) == 0.5
