"""The picture size a base model was made for, from its configuration files alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hubctl.errors import InputError
from hubctl.families import FALLBACK_PX


def native_px(folder: Path) -> int:
    """Side, in pixels, of the square pictures the base in `folder` was made for; 512 when it does not say.

    Raises:
        InputError: one of the files is not JSON.
    """
    denoiser = _read_json(folder / "unet" / "config.json") or _read_json(
        folder / "transformer" / "config.json"
    )
    vae = _read_json(folder / "vae" / "config.json")
    if denoiser and vae:
        # Every VAE level after the first halves the picture: AutoencoderKL names its levels in
        # `block_out_channels`, AutoencoderTiny in `encoder_block_out_channels`.
        levels = vae.get("encoder_block_out_channels") or vae.get("block_out_channels") or [0] * 4
        sample = denoiser.get("sample_size")
        if isinstance(sample, int):
            return sample * 2 ** (len(levels) - 1)
    size = _read_json(folder / "preprocessor_config.json").get("size")
    if isinstance(size, dict):
        size = size.get("height") or size.get("shortest_edge")
    return size if isinstance(size, int) else FALLBACK_PX


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path} is not JSON: {error}", hint="take the file from where the base comes from"
        ) from error
    return value if isinstance(value, dict) else {}
