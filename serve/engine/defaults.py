"""What a request gets that does not say how many steps or how much guidance: what the base's card states.

The card says it where the Hub's own model cards do, in the header of README.md:

    inference:
      parameters:
        num_inference_steps: 25
        guidance_scale: 1.5
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path

from hubctl.adapter.card import CARD, read_card_data
from hubctl.errors import InputError
from serve.engine.requests import ImageRequest


@dataclass(frozen=True, kw_only=True, slots=True)
class Defaults:
    """Values for the fields of `ImageRequest` that have the same names; None where nothing is stated."""

    num_inference_steps: int | None = None
    guidance_scale: float | None = None


def stated_defaults(folder: Path) -> Defaults:
    """The defaults in the card of the base in `folder`; other parameters there are for other programs.

    Raises:
        InputError: one is no number that it can be.
        AdapterError: the card's header cannot be read.
    """
    inference = read_card_data(folder).get("inference")
    parameters = inference.get("parameters") if isinstance(inference, dict) else None
    stated = parameters if isinstance(parameters, dict) else {}
    steps, guidance = stated.get("num_inference_steps"), stated.get("guidance_scale")
    if steps is not None and (type(steps) is not int or steps < 1):
        raise InputError(f"{folder / CARD}: inference.parameters.num_inference_steps is {steps!r}")
    if guidance is not None and (type(guidance) not in (int, float) or not 0 <= guidance <= 100):
        raise InputError(f"{folder / CARD}: inference.parameters.guidance_scale is {guidance!r}")
    return Defaults(num_inference_steps=steps, guidance_scale=None if guidance is None else float(guidance))


def filled(request: ImageRequest, *defaults: Defaults, max_steps: int) -> ImageRequest:
    """The request with what it leaves open, from the first of `defaults` that states it.

    A default never asks for more than `max_steps`; a request that does is for others to refuse.
    """
    found = {}
    for name in (field.name for field in fields(Defaults)):
        stated = (getattr(each, name) for each in defaults)
        value = next((value for value in stated if value is not None), None)
        if getattr(request, name) is None and value is not None:
            found[name] = min(value, max_steps) if name == "num_inference_steps" else value
    return replace(request, **found)
