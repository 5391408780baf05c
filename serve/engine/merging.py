"""Arguments of several calls as those of one, and one output as those of several: rows along dim 0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch


def merged(values: Sequence[Any], *, shared: bool = False) -> Any:
    """The inverse of `parted`, apart from tensors that all values share."""
    first = values[0]
    if isinstance(first, torch.Tensor):
        return first if shared or len(values) == 1 else torch.cat(list(values))
    if isinstance(first, Mapping):
        return type(first)(**{key: merged([v[key] for v in values], shared=shared) for key in first})
    if isinstance(first, list | tuple):
        return type(first)(merged(list(column), shared=shared) for column in zip(*values, strict=True))
    if _is_posterior(first):
        return type(first)(merged([v.parameters for v in values]), deterministic=first.deterministic)
    return first


def parted(output: Any, rows: Sequence[int]) -> list[Any]:
    """The rows of a value, e.g. of a merged forward's output, each part of the value's own type."""
    if isinstance(output, torch.Tensor):
        return list(torch.split(output, list(rows)))
    if isinstance(output, Mapping):  # also ModelOutput and BaseOutput, which are ordered dicts
        columns = {key: parted(value, rows) for key, value in output.items()}
        return [type(output)(**{key: c[i] for key, c in columns.items()}) for i in range(len(rows))]
    if isinstance(output, list | tuple):
        parts = [parted(item, rows) for item in output]
        return [type(output)(part[i] for part in parts) for i in range(len(rows))]
    if _is_posterior(output):
        parts = parted(output.parameters, rows)
        return [type(output)(part, deterministic=output.deterministic) for part in parts]
    return [output] * len(rows)


def _is_posterior(value: Any) -> bool:
    """Whether it is what a VAE's encode gives: diffusers' DiagonalGaussianDistribution, or one like it."""
    return isinstance(getattr(value, "parameters", None), torch.Tensor)
