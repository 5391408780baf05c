from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from train.export import draw_losses, settle_header


def test_the_header_comes_into_one_order_and_nothing_else_changes(tmp_path: Path) -> None:
    tensors = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.ones(5, dtype=torch.float16)}
    metadata = {
        "zeta": json.dumps({"alpha": 4}),
        "format": "pt",
        "umlaut": "\N{LATIN SMALL LETTER U WITH DIAERESIS}",
    }
    files = []
    for order in (1, -1):
        path = tmp_path / f"{order}.safetensors"
        save_file(tensors, path, dict(list(metadata.items())[::order]))
        settle_header(path)
        files.append(path)
    assert files[0].read_bytes() == files[1].read_bytes()
    loaded = load_file(files[0])
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
    with safe_open(files[0], "pt") as file:
        assert file.metadata() == metadata


def test_a_loss_curve_of_a_single_step_is_drawn(tmp_path: Path) -> None:
    draw_losses([1.0], tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
