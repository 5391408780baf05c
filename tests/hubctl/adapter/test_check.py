from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubctl.adapter.check import Shapes, check_fit, looks_like


@dataclass
class Module:
    component: str = "unet"
    module: str = "attn2.to_k"
    a_shape: tuple[int, ...] = (4, 768)
    b_shape: tuple[int, ...] = (320, 4)
    embedding: bool = False


@dataclass
class Head:
    name: str
    shape: tuple[int, ...]
    module: str = "decode_head"


BASE: Shapes = {
    "unet": {"attn2.to_k.weight": (320, 768), "conv.weight": (8, 4, 3, 3), "norm.weight": (320,)},
    "text_encoder": {"embeddings.token_embedding.weight": (49408, 768)},
    "model": {
        "decode_head.fuse.weight": (16, 32),
        "decode_head.classifier.weight": (2, 16, 1, 1),
        "decode_head.classifier.bias": (2,),
        "decode_head.norm.count": (),
        "segformer.x.weight": (4, 4),
    },
}
LINEAR = Module()
TABLE = Module(
    component="text_encoder",
    module="embeddings.token_embedding",
    a_shape=(4, 49408),
    b_shape=(768, 4),
    embedding=True,
)
CONV = Module(module="conv", a_shape=(4, 4, 3, 3), b_shape=(8, 4, 1, 1))


@pytest.mark.parametrize("modules", [[LINEAR], [CONV], [TABLE], [LINEAR, CONV]])
def test_what_fits(modules: list[Module]) -> None:
    fit = check_fit(modules, [], BASE)
    assert fit.fits
    assert (fit.matched, fit.total, fit.problems) == (len(modules), len(modules), ())


@pytest.mark.parametrize(
    ("module", "problem"),
    [
        (Module(module="attn9.to_k"), "the base has no layer 'unet.attn9.to_k'"),
        (Module(component="text_encoder"), "the base has no layer 'text_encoder.attn2.to_k'"),
        (
            Module(a_shape=(4, 1024)),
            "'unet.attn2.to_k' is 320x768 in the base, the adapter was made for 320x1024",
        ),
        (Module(b_shape=(640, 4)), "is 320x768 in the base, the adapter was made for 640x768"),
        (Module(module="norm"), "is 320 in the base"),
        (Module(module="conv", a_shape=(4, 4, 1, 1), b_shape=(8, 4, 1, 1)), "8x4x3x3 in the base"),
        (Module(module="conv", a_shape=(4, 4), b_shape=(8, 4)), "made for 8x4"),
    ],
)
def test_what_does_not_fit(module: Module, problem: str) -> None:
    fit = check_fit([LINEAR, module], [], BASE)
    assert not fit.fits
    assert (fit.matched, fit.total) == (1, 2)
    assert problem in fit.problems[0]


def head(classes: int = 2, **changes: tuple[int, ...] | None) -> list[Head]:
    shapes: dict[str, tuple[int, ...] | None] = {
        "fuse.weight": (16, 32),
        "classifier.weight": (classes, 16, 1, 1),
        "classifier.bias": (classes,),
        "norm.count": (),
    }
    shapes |= {name.replace("_", "."): shape for name, shape in changes.items()}
    return [Head(f"decode_head.{name}", shape) for name, shape in shapes.items() if shape is not None]


@pytest.mark.parametrize("classes", [1, 2, 3, 150])
def test_a_head_may_have_other_classes(classes: int) -> None:
    assert check_fit([], head(classes), BASE).fits


@pytest.mark.parametrize(
    ("heads", "problem"),
    [
        (head(3, classifier_bias=(2,)), "'decode_head.classifier' has another width"),
        (head(3, classifier_bias=(4,)), "'decode_head.classifier' has another width"),
        (head(3, fuse_weight=(17, 32)), "'decode_head.fuse' has another width"),
        (head(fuse_weight=(16, 33)), "'decode_head.fuse.weight' is 16x32 in the base, 16x33 in the adapter"),
        (head(classifier_bias=(2, 1)), "'decode_head.classifier.bias' is 2 in the base"),
        (head(classifier_bias=None), "the adapter's head lacks 'decode_head.classifier.bias'"),
        (head(extra_bias=(1,)), "the base has no tensor 'decode_head.extra.bias'"),
    ],
)
def test_heads_that_do_not_fit(heads: list[Head], problem: str) -> None:
    fit = check_fit([], heads, BASE)
    assert not fit.fits
    assert any(problem in p for p in fit.problems)


def test_a_base_that_makes_images_takes_no_whole_modules() -> None:
    fit = check_fit([LINEAR], [Head("conv.weight", (8, 4, 3, 3), "conv")], {"unet": BASE["unet"]})
    assert (fit.matched, fit.total) == (1, 2)
    assert "replaces 'conv.weight' whole" in fit.problems[0]


def with_auxiliary(classes: int) -> list[Head]:
    return [Head("auxiliary_head.classifier.weight", (classes, 8, 1, 1), "auxiliary_head")]


@pytest.mark.parametrize(
    ("classes", "auxiliary", "fits"), [(2, 2, True), (3, 3, True), (3, 4, False), (2, 3, True)]
)
def test_an_auxiliary_head_has_the_heads_classes(classes: int, auxiliary: int, fits: bool) -> None:
    known = {**BASE["model"]} | {"auxiliary_head.classifier.weight": (2, 8, 1, 1)}
    assert check_fit([], head(classes) + with_auxiliary(auxiliary), {"model": known}).fits == fits


def test_nothing_fits_nothing() -> None:
    assert not check_fit([], [], BASE).fits


@given(st.integers(1, 64), st.integers(1, 64), st.integers(1, 8), st.integers(1, 64), st.integers(1, 64))
def test_a_linear_pair_fits_exactly_its_own_shape(
    ins: int, outs: int, rank: int, wide: int, high: int
) -> None:
    module = Module(a_shape=(rank, ins), b_shape=(outs, rank))
    fits = check_fit([module], [], {"unet": {"attn2.to_k.weight": (high, wide)}}).fits
    assert fits == ((outs, ins) == (high, wide))


@pytest.mark.parametrize(
    ("module", "family"),
    [
        (Module(a_shape=(4, 768)), "Stable Diffusion 1.x"),
        (Module(a_shape=(4, 1024)), "Stable Diffusion 2.x"),
        (Module(a_shape=(4, 2048)), "SDXL"),
        (Module(a_shape=(4, 5)), None),
        (
            Module(component="transformer", module="transformer_blocks.0.attn.add_q_proj", a_shape=(4, 1536)),
            "SD3",
        ),
        (Module(component="transformer", module="x.attn.to_q", a_shape=(4, 3072)), "a transformer base"),
        (Module(component="model"), "a transformers model"),
    ],
)
def test_looks_like(module: Module, family: str | None) -> None:
    assert looks_like([module]) == family
