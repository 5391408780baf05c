"""One adapted layer by the names and shapes of its tensors: rank, widths, what it lacks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from hubctl.adapter.fingerprint import Place

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerShapes:
    """One layer that a file adapts, and the tensors that do it."""

    component: str
    module: str
    """Path of the layer as the file spells it, without the component."""
    kind: str
    """`LoRA`, `LoHa`, `LoKr`, ..."""
    keys: Mapping[str, str]
    """Part → tensor: `A`, `B`, `alpha`, `M` (DoRA's magnitudes), or the end of the tensor's own name."""
    shapes: Mapping[str, Shape]
    """Part → shape."""

    @property
    def rank(self) -> int | None:
        """The inner dimension, for the kinds that have one."""
        s = self.shapes
        if self.kind in ("LoRA", "AdaLoRA") and (a := s.get("A") or s.get("B", ())[1:]):
            return a[0]
        if self.kind == "LoHa" and (b := s.get("hada_w1_b")):
            return b[0]
        if self.kind == "LoKr" and (b := s.get("lokr_w2_b") or s.get("lokr_w1_b")):
            return b[0]
        return None

    @property
    def missing(self) -> tuple[str, ...]:
        """Parts that this layer cannot do without, and lacks."""
        has = set(self.keys)
        if self.kind in ("LoRA", "AdaLoRA"):
            need = {"A", "B"} if has & {"A", "B", "mid", "M", "alpha", "bias"} else set()
        elif self.kind == "LoHa":
            need = {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}
        elif self.kind == "LoKr":
            need = set()
            for w in ("lokr_w1", "lokr_w2"):
                if w not in has:
                    need |= {f"{w}_a", f"{w}_b"}
        else:
            need = set()
        return tuple(sorted(need - has))

    @property
    def path(self) -> str:
        """Component and layer, for people."""
        return f"{self.component}.{self.module}"

    @property
    def place(self) -> Place:
        """Where it is, and the width of its input and output, as far as the kind tells."""
        ins, outs = _widths(self.kind, self.shapes)
        return Place(self.component, self.module, ins, outs)

    @property
    def conv(self) -> bool:
        """The layer is a convolution."""
        parts = (shape for part, shape in self.shapes.items() if not part.startswith(("oft", "boft")))
        return any(len(shape) > 2 for shape in parts)


def _widths(kind: str, s: Mapping[str, Shape]) -> tuple[int | None, int | None]:
    """Input and output width of a layer, from the shapes of what adapts it."""

    def dim(part: str, axis: int) -> int | None:
        shape = s.get(part, ())
        return shape[axis] if len(shape) > axis else None

    if kind in ("LoRA", "AdaLoRA"):
        return dim("A", 1), dim("B", 0)
    if kind == "LoHa":
        tucker = "hada_t1" in s
        return dim("hada_w1_b", 1), dim("hada_w1_a", 1 if tucker else 0)
    if kind == "LoKr":
        factors = [
            (dim(w, 0) or dim(f"{w}_a", 0), dim(w, 1) or dim(f"{w}_b", 1)) for w in ("lokr_w1", "lokr_w2")
        ]
        outs, ins = ([n for pair in factors if (n := pair[axis])] for axis in (0, 1))
        return (math.prod(ins) if len(ins) == 2 else None), (math.prod(outs) if len(outs) == 2 else None)
    if kind == "full difference":
        return dim("diff", 1), dim("diff", 0)
    return None, None
