"""Images that nobody should get: NaN, infinite, refused by the base's safety checker, or wholly black.

A pipeline tells none of these apart: its postprocessing clamps infinity to black or white, and a safety
checker paints over what it refuses. So the autoencoder's input and output are looked at as they pass, and
the finished images once more. Each request is looked at by itself; others in its forwards go on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from hubctl.errors import AdapterError, HubctlError, InputError
from serve.engine.host_rows import all_finite
from serve.engine.proxy import Caller
from serve.engine.shared_module import SharedModule


class Decoding:
    """A client for the autoencoder, which looks at what goes into `decode` and what comes out."""

    def __init__(self, client: Caller, *, adapted: bool) -> None:
        self._client, self._adapted = client, adapted

    def call(self, module: SharedModule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the module's method; see `Client.call`.

        Raises:
            AdapterError: the latents are not finite, and the request has adapters.
            HubctlError: they are not finite without any, or only the decoded image is not.
        """
        if module.shape.method != "decode":
            return self._client.call(module, args, kwargs)
        if not all_finite(*_tensors((*args, *kwargs.values()))):
            raise _diverged(adapted=self._adapted)
        output = self._client.call(module, args, kwargs)
        if not all_finite(*_tensors(tuple(output))):
            dtype = str(next(module.module.parameters()).dtype).removeprefix("torch.")
            raise HubctlError(
                f"the base's autoencoder overflowed in {dtype}: the image would be black or NaN",
                hint="lower the scale of the adapters, or ask the operator for dtype = 'float32'"
                if self._adapted
                else "ask the operator for dtype = 'bfloat16' or 'float32'",
            )
        return output


def refuse_spoilt(images: np.ndarray, refused: Sequence[bool] | None) -> None:
    """Look at finished images, float (n, height, width, 3) in 0 to 1.

    Args:
        images: What the pipeline gave.
        refused: The pipeline's own `nsfw_content_detected`, one for each image; None without a checker.

    Raises:
        InputError: the base's safety checker refused one.
        HubctlError: one is not finite or wholly black, for no reason that is known.
    """
    for i, image in enumerate(images):
        which = "the image" if len(images) == 1 else f"image {i + 1} of {len(images)}"
        if refused is not None and refused[i]:
            raise InputError(
                f"the base's safety checker refused {which}",
                hint="try another prompt or seed",
                param="prompt",
            )
        if not np.isfinite(image).all():
            raise HubctlError(f"{which} came out as NaN", hint="try another scheduler or seed")
        if not (image * 255).round().any():
            raise HubctlError(f"{which} came out wholly black", hint="try another prompt, seed or scale")


def _diverged(*, adapted: bool) -> HubctlError:
    """What to say when the denoiser's latents are not finite."""
    what = "the image came out as NaN or infinity before it was decoded"
    if adapted:
        return AdapterError(f"{what}: the adapters drove it there", hint="lower the scale of the adapters")
    return HubctlError(what, hint="try another scheduler or guidance_scale")


def _tensors(values: tuple[Any, ...]) -> list[torch.Tensor]:
    return [value for value in values if isinstance(value, torch.Tensor)]
