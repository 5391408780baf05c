"""What was saved is what was trained: a fresh base with the saved adapter must answer as the trained one."""

from __future__ import annotations

import torch

from hubctl.errors import DivergedError, IntegrityError

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2}
"""Largest difference, relative to the largest value; sums in another order differ by rounding alone."""


def require_same_tensors(trained: dict[str, torch.Tensor], loaded: dict[str, torch.Tensor]) -> None:
    """Raise `IntegrityError` unless every trained tensor was loaded again, and nothing else.

    Names are peft's, without the adapter's.
    """
    if missing := sorted(trained.keys() - loaded.keys()):
        raise _unfaithful(
            f"{len(missing)} of {len(trained)} tensors are not loaded again, '{missing[0]}' first"
        )
    if strange := sorted(loaded.keys() - trained.keys()):
        raise _unfaithful(f"'{strange[0]}' is loaded, but was not trained")
    for name, value in trained.items():
        if not torch.equal(value.cpu().to(loaded[name].dtype), loaded[name].cpu()):
            raise _unfaithful(f"'{name}' is loaded with other values")


def require_same_answer(trained: torch.Tensor, loaded: torch.Tensor, dtype: torch.dtype) -> float:
    """The largest difference of two answers, relative to the largest value.

    Raises:
        DivergedError: the trained model's answer is no number.
        IntegrityError: it is above what rounding in `dtype` explains.
    """
    if not bool(torch.isfinite(trained).all()):
        raise DivergedError(
            "training has diverged: the trained model answers with what is no number",
            hint="train again with a lower --lr",
        )
    scale = float(trained.abs().max()) or 1.0
    difference = float((trained - loaded).abs().max()) / scale
    # `not <=` also catches NaN.
    if not difference <= TOLERANCE[dtype]:
        raise _unfaithful(
            f"it answers otherwise than what was trained, by {difference:.2g} of the largest value"
        )
    return difference


def _unfaithful(what: str) -> IntegrityError:
    return IntegrityError(
        f"the saved adapter is not the trained one: {what}",
        hint="this is a fault of hubctl or of a library: nothing was written; please report it",
    )
