"""Does an adapter fit a base? A pure comparison of shapes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from hubctl.adapter.fingerprint import TITLES, Place, family_of


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


class _Tokens(Protocol):
    @property
    def widths(self) -> Mapping[str, int]: ...


Shapes = Mapping[str, Mapping[str, tuple[int, ...]]]

_TABLE = "embeddings.token_embedding.weight"
"""A CLIP's own vectors of tokens, by their current name."""

Verdict = Literal["fits", "partly", "wrong-base"]


@dataclass(frozen=True, slots=True)
class Fit:
    """How many of the adapter's parts have their place in the base, and what is wrong with the rest."""

    matched: int
    total: int
    problems: tuple[str, ...]
    looks_like: str | None = None
    """The family that the adapter's layers point to (`fingerprint.TITLES`)."""
    base_looks_like: str | None = None
    """The family that the base's own layers point to."""

    @property
    def verdict(self) -> Verdict:
        """Whether it fits, partly fits, or was made for another kind of base."""
        if self.fits:
            return "fits"
        other = self.looks_like is not None and self.looks_like != self.base_looks_like
        return "wrong-base" if other or not self.matched else "partly"

    @property
    def fits(self) -> bool:
        """Every part has its place, and there is at least one."""
        return self.matched == self.total > 0


def check_fit(
    modules: Iterable[_Module], heads: Iterable[_Head], base: Shapes, tokens: _Tokens | None = None
) -> Fit:
    """Compare every LoRA pair, every saved head and the new tokens with the base's own tensors.

    A pair fits a weight of shape (out, in[, height, width]) when A is (rank, in[, height, width]) and B is
    (out, rank[, 1, 1]); a table of embeddings, whose weight is (in, out), when A is (rank, in). A head comes
    whole: every tensor that the base has there, with the same shape, except that the first dimension of one
    layer (the classifier) may differ, since that is the number of classes; an auxiliary head has such a layer
    too. New tokens need vectors for every text encoder, as wide as its own.
    """
    problems: list[str] = []
    total = 0
    modules = tuple(modules)
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
    head_total, head_problems = _check_heads(tuple(heads), base.get("model"))
    total, problems = total + head_total, problems + head_problems
    if tokens:
        token_total, token_problems = _check_tokens(tokens.widths, base)
        total, problems = total + token_total, problems + token_problems
    matched = total - len(problems)
    if matched == total > 0:
        return Fit(matched, total, ())
    return Fit(matched, total, tuple(problems), family_of(_places(modules)), family_of(_base_places(base)))


def _check_heads(
    heads: tuple[_Head, ...], known: Mapping[str, tuple[int, ...]] | None
) -> tuple[int, list[str]]:
    """How many tensors the heads have or should have, and what is wrong with them."""
    if not heads:
        return 0, []
    if known is None:
        replaced = [f"it replaces '{h.name}' whole, which goes with segmentation bases alone" for h in heads]
        return len(heads), replaced
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


def _check_tokens(widths: Mapping[str, int], base: Shapes) -> tuple[int, list[str]]:
    """How many text encoders the new tokens have or should have vectors for, and what is wrong with them."""
    tables = {
        component: tensors[_TABLE][1]
        for component, tensors in base.items()
        if component.startswith("text_encoder") and _TABLE in tensors
    }
    problems: list[str] = []
    for component in sorted(widths.keys() | tables.keys()):
        width, own = widths.get(component), tables.get(component)
        if own is None:
            problems.append(f"the base has no '{component}' that could learn new tokens")
        elif width is None:
            problems.append(f"the new tokens have no vectors for '{component}'")
        elif width != own:
            problems.append(f"new tokens have {width} numbers for '{component}', where the base has {own}")
    return len(widths.keys() | tables.keys()), problems


def _whole(
    layer: str, heads: tuple[_Head, ...], known: Mapping[str, tuple[int, ...]], widths: set[int]
) -> bool:
    """Every tensor of the head's `layer` has the new width, not just some of them."""
    shapes = [h.shape for h in heads if h.name.rpartition(".")[0] == layer and h.name in known]
    return all(shape and shape[0] in widths for shape in shapes)


def looks_like(modules: Iterable[_Module]) -> str | None:
    """The family that the shapes point to, as people write it, or None."""
    modules = tuple(modules)
    if family := family_of(_places(modules)):
        return TITLES[family]
    components = {m.component for m in modules}
    if "transformer" in components:
        return "a transformer base"
    return "a transformers model" if "model" in components else None


def _places(modules: Iterable[_Module]) -> Iterator[Place]:
    return (Place(m.component, m.module, m.a_shape[1], m.b_shape[0]) for m in modules)


def _base_places(base: Shapes) -> Iterator[Place]:
    return (
        Place(component, name.removesuffix(".weight"), shape[1], shape[0])
        for component, tensors in base.items()
        for name, shape in tensors.items()
        if len(shape) > 1 and name.endswith(".weight")
    )


def _x(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
