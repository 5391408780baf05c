"""An adapter in one line: layers, ranks, scales."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from hubctl.adapter.layout import AdapterLayout


def describe(layout: AdapterLayout) -> dict[str, Any]:
    """Components, ranks, alphas and scales of a layout, and a `summary` that says them in a line."""
    components = Counter(module.component for module in layout.modules)
    ranks = sorted({module.rank for module in layout.modules})
    alphas = sorted({module.alpha for module in layout.modules})
    scales = sorted({round(module.scale, 6) for module in layout.modules})
    shown = ", ".join(f"{count} in {name}" for name, count in sorted(components.items()))
    heads = f", {len(layout.heads)} whole tensors" if layout.heads else ""
    kohya = layout.dialect == "kohya"  # its alphas are values, and were not looked at
    return {
        "dialect": layout.dialect,
        "weights": layout.weights_file.name,
        "layers": len(layout.modules),
        "components": dict(components),
        "ranks": ranks,
        "alphas": [] if kohya else alphas,
        "scales": [] if kohya else scales,
        "whole_tensors": len(layout.heads),
        "summary": (
            f"{len(layout.modules)} layers ({shown}), rank {_span(ranks)}"
            f"{'' if kohya else f', alpha {_span(alphas)}, scale {_span(scales)}'}{heads}"
        ),
    }


def _span(values: Sequence[float]) -> str:
    if not values:
        return "-"
    low, high = values[0], values[-1]
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"
