"""Does an adapter fit a base? A pure comparison of shapes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol


class _Module(Protocol):
    @property
    def component(self) -> str: ...
    @property
    def module(self) -> str: ...
    @property
    def a_shape(self) -> tuple[int, ...]: ...
    @property
    def b_shape(self) -> tuple[int, ...]: ...


class _Head(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...


Shapes = Mapping[str, Mapping[str, tuple[int, ...]]]

# In-features of the cross-attention's to_k tell a text-to-image family.
_WIDTHS = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "SDXL"}


@dataclass(frozen=True, slots=True)
class Fit:
    """The verdict: how many of the adapter's parts have their place in the base, and what is wrong with the rest."""

    matched: int
    total: int
    problems: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Every part has its place, and there is at least one."""
        return self.matched == self.total > 0


def check_fit(modules: Iterable[_Module], heads: Iterable[_Head], base: Shapes) -> Fit:
    """Compare every LoRA pair and every saved head with the base's own tensors.

    A pair fits a weight of shape (out, in[, height, width]) when A is (rank, in[, height, width]) and B is
    (out, rank[, 1, 1]). A head's tensor fits when the base has it with the same shape; its first dimension may
    differ, since that is the number of classes.
    """
    problems: list[str] = []
    total = 0
    for m in modules:
        total += 1
        where = f"{m.component}.{m.module}"
        weight = base.get(m.component, {}).get(f"{m.module}.weight")
        if weight is None:
            problems.append(f"the base has no layer '{where}'")
        elif weight[1:] != m.a_shape[1:] or weight[0] != m.b_shape[0]:
            made_for = (m.b_shape[0], *m.a_shape[1:])
            problems.append(f"'{where}' is {_x(weight)} in the base, the adapter was made for {_x(made_for)}")
    known = base.get("model", {})
    for h in heads:
        total += 1
        if h.name not in known:
            problems.append(f"the base has no tensor '{h.name}'")
        elif known[h.name][1:] != h.shape[1:] or len(known[h.name]) != len(h.shape):
            problems.append(f"'{h.name}' is {_x(known[h.name])} in the base, {_x(h.shape)} in the adapter")
    return Fit(total - len(problems), total, tuple(problems))


def looks_like(modules: Iterable[_Module]) -> str | None:
    """The family that the shapes point to, or None."""
    for m in modules:
        if m.component == "unet" and m.module.endswith("attn2.to_k"):
            return _WIDTHS.get(m.a_shape[1])
        if m.component == "transformer":
            return "SD3" if ".attn.add_q_proj" in m.module and m.a_shape[1] == 1536 else "a transformer base"
        if m.component == "model":
            return "a transformers model"
    return None


def _x(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
