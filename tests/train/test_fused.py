"""LoRA in a pass less, against peft's own layers: the same answers and the same gradients."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from train.fused import adapts_the_weight, fuse_lora, unfuse_lora

SHAPES = [(5, 12), (2, 7, 12), (2, 3, 4, 12)]


def adapted(dtype: torch.dtype = torch.float32, **settings: Any) -> Any:
    """Two layers with random LoRA, whose scale is not 1."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(12, 16), nn.Linear(16, 8, bias=False)).to(dtype)
    settings = {"r": 4, "lora_alpha": 6, "init_lora_weights": False, **settings}
    config = LoraConfig(target_modules=["0", "1"], **settings)
    model: Any = get_peft_model(base, config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


def twins(**settings: Any) -> tuple[Any, Any]:
    model = adapted(**settings)
    fused = copy.deepcopy(model)
    fuse_lora(fused)
    return model, fused


def answers(model: Any, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """What it says, and every gradient of a loss on it."""
    x = x.clone().requires_grad_()
    y = model(x)
    model.zero_grad()
    y.float().pow(2).sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"y": y.detach(), "x": x.grad, **gradients}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], rtol: float = 1e-5) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert other[name].dtype == value.dtype
        torch.testing.assert_close(other[name], value, rtol=rtol, atol=rtol * float(value.abs().max()))


@pytest.mark.parametrize(
    ("sizes", "rank", "expected"),
    [((64, 64), 16, True), ((128, 128), 16, True), ((192, 192), 16, False), ((320, 320), 4, False),
     ((64, 192), 16, True), ((8, 2000), 4, True), ((1280, 1280), 128, False)],
)  # fmt: skip
def test_the_weight_is_adapted_where_that_takes_fewer_products(
    sizes: tuple[int, int], rank: int, expected: bool
) -> None:
    assert adapts_the_weight(*sizes, rank) == adapts_the_weight(*sizes[::-1], rank) == expected


@pytest.mark.parametrize("rank", [1, 4])
@pytest.mark.parametrize("shape", SHAPES)
def test_answers_and_gradients_are_peft_s(shape: tuple[int, ...], rank: int) -> None:
    model, fused = twins(r=rank)
    x = torch.randn(shape)
    found = answers(fused, x)
    assert len(found) == 2 + 4
    assert_same(answers(model, x), found)


@pytest.mark.parametrize(
    "settings", [{"use_dora": True}, {"lora_dropout": 0.5}, {"use_rslora": True}], ids=str
)
def test_other_kinds_are_computed_as_peft_does(settings: dict[str, Any]) -> None:
    model, fused = twins(**settings)
    x = torch.randn(3, 12)
    torch.manual_seed(1)
    expected = answers(model, x)
    torch.manual_seed(1)
    assert_same(expected, answers(fused, x))


def test_disabled_several_merged_and_unknown_adapters_too() -> None:
    model, fused = twins()
    x = torch.randn(3, 12)
    with model.disable_adapter(), fused.disable_adapter():
        assert torch.equal(model(x), fused(x))
    for one in (model, fused):
        torch.manual_seed(2)
        one.add_adapter("other", LoraConfig(r=2, target_modules=["0"], init_lora_weights=False))
        one.base_model.set_adapter(["default", "other"])
    assert_same(answers(model, x), answers(fused, x))
    for one in (model, fused):
        one.base_model.set_adapter("other")  # the second layer has none of this name
    assert_same(answers(model, x), answers(fused, x))
    for one in (model, fused):
        one.merge_adapter()
    assert torch.equal(model(x), fused(x))


def test_half_precision_is_as_close_to_float32_as_peft_s() -> None:
    model, fused = twins()
    x = torch.randn(64, 12)
    exact = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        theirs, ours = model(x), fused(x)
    assert ours.dtype == theirs.dtype == torch.bfloat16
    assert (ours - exact).abs().mean() <= 1.1 * (theirs - exact).abs().mean()


def test_a_base_in_half_precision_outside_of_autocast_is_left_to_peft() -> None:
    model, fused = twins(dtype=torch.bfloat16)
    x = torch.randn(3, 12, dtype=torch.bfloat16)
    assert torch.equal(model(x), fused(x))


def test_undone_it_is_peft_s_to_the_last_bit() -> None:
    model, fused = twins()
    unfuse_lora(fused)
    x = torch.randn(3, 12)
    assert torch.equal(model(x), fused(x))
    assert "forward" not in vars(fused.base_model.model[0])
