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
    @property
    def embedding(self) -> bool: ...


class _Head(Protocol):
    @property
    def module(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...


Shapes = Mapping[str, Mapping[str, tuple[int, ...]]]

# In-features of the cross-attention's to_k tell a text-to-image family.
_WIDTHS = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "SDXL"}


@dataclass(frozen=True, slots=True)
class Fit:
    """How many of the adapter's parts have their place in the base, and what is wrong with the rest."""

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
    (out, rank[, 1, 1]); a table of embeddings, whose weight is (in, out), when A is (rank, in). A head comes
    whole: every tensor that the base has there, with the same shape, except that the first dimension of one
    layer (the classifier) may differ, since that is the number of classes; an auxiliary head has such a layer
    too.
    """
    problems: list[str] = []
    total = 0
    for m in modules:
        total += 1
        where = f"{m.component}.{m.module}"
        weight = base.get(m.component, {}).get(f"{m.module}.weight")
        if weight is None:
            problems.append(f"the base has no layer '{where}'")
            continue
        made_for = (m.b_shape[0], *m.a_shape[1:])
        if weight != (made_for[::-1] if m.embedding else made_for):
            problems.append(f"'{where}' is {_x(weight)} in the base, the adapter was made for {_x(made_for)}")
    head_total, head_problems = _check_heads(tuple(heads), base.get("model", {}))
    total, problems = total + head_total, problems + head_problems
    return Fit(total - len(problems), total, tuple(problems))


def _check_heads(heads: tuple[_Head, ...], known: Mapping[str, tuple[int, ...]]) -> tuple[int, list[str]]:
    """How many tensors the heads have or should have, and what is wrong with them."""
    if not heads:
        return 0, []
    problems: list[str] = []
    changed: dict[tuple[str, str], set[tuple[int, int]]] = {}  # (head, layer) → its widths, old and new
    for h in heads:
        if h.name not in known:
            problems.append(f"the base has no tensor '{h.name}'")
        elif known[h.name][1:] != h.shape[1:] or len(known[h.name]) != len(h.shape):
            problems.append(f"'{h.name}' is {_x(known[h.name])} in the base, {_x(h.shape)} in the adapter")
        elif known[h.name] != h.shape:
            layer = h.name.rpartition(".")[0]
            changed.setdefault((h.module, layer), set()).add((known[h.name][0], h.shape[0]))
    # One layer of each head, its weight and bias alike, and the auxiliary head's as the main head's.
    alone = len({head for head, _ in changed}) == len(changed)
    alike = len(set().union(*changed.values())) <= 1
    for (_, layer), widths in changed.items():
        if not (alone and alike and _whole(layer, heads, known, {new for _, new in widths})):
            problems.append(f"'{layer}' has another width than in the base")
    saved = {h.name for h in heads}
    modules = {h.module for h in heads}
    missing = [n for n in known if n not in saved and any(n.startswith(f"{m}.") for m in modules)]
    problems += [f"the adapter's head lacks '{name}'" for name in missing]
    return len(heads) + len(missing), problems


def _whole(
    layer: str, heads: tuple[_Head, ...], known: Mapping[str, tuple[int, ...]], widths: set[int]
) -> bool:
    """Every tensor of the head's `layer` has the new width, not just some of them."""
    shapes = [h.shape for h in heads if h.name.rpartition(".")[0] == layer and h.name in known]
    return all(shape and shape[0] in widths for shape in shapes)


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
