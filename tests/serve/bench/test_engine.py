"""The whole benchmark on a small scale, and the folders that it makes its bases from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from diffusers import DiffusionPipeline

from hubctl.adapter.base_shapes import read_base_shapes
from hubctl.cli.main import cli
from hubctl.families import detect_family
from serve.bench.contenders import APART, BARE, BASE, HOTSWAPPED, MIXED, NAMED, SWITCHED
from serve.bench.shapes import SHAPES, randomise, write_base

SMALL = {"block_out_channels": (32, 32, 32), "attention_head_dim": 2, "norm_num_groups": 8}
NARROW: dict[str, dict[str, Any]] = {
    "sdxl": SMALL,
    "sd15": {**SMALL, "block_out_channels": (32, 32, 32, 32)},
    "sd3-medium": {"num_layers": 1, "num_attention_heads": 2, "caption_projection_dim": 128},
    "flux1": {"num_layers": 1, "num_single_layers": 1, "num_attention_heads": 2, "attention_head_dim": 128},
}
FAMILY = {"sdxl": "sdxl", "sd15": "sd1", "sd3-medium": "sd3", "flux1": "flux"}


@pytest.mark.parametrize("name", NARROW)
def test_a_hollow_base_loads_like_a_real_one_and_draws(name: str, tmp_path: Path) -> None:
    shape = replace(SHAPES[name], config={**SHAPES[name].config, **NARROW[name]})
    folder = write_base(tmp_path, shape)
    family = detect_family(folder)
    assert family.name == FAMILY[name]
    assert read_base_shapes(folder, family)[shape.denoiser]
    absent = {"text_encoder_3": None, "tokenizer_3": None} if name == "sd3-medium" else {}
    pipeline = DiffusionPipeline.from_pretrained(folder, dtype=torch.float32, **absent)
    pipeline.set_progress_bar_config(disable=True)
    randomise(getattr(pipeline, shape.denoiser), 0)
    size = {"width": 64, "height": 64, "num_inference_steps": 1}
    image = pipeline("a thing", guidance_scale=shape.guidance, output_type="np", **size).images[0]
    assert image.shape == (64, 64, 3)
    weights = next((folder / shape.denoiser).glob("*.safetensors")).stat()
    assert weights.st_blocks * 512 < weights.st_size / 2  # a hole takes no disk


def test_everything_is_measured_and_written_down(tmp_path: Path) -> None:
    flags = ["--jobs", "2", "--adapters", "1,2", "--turns", "1", "--rounds", "1"]
    flags += ["--residents", "1,2", "--rank", "2"]
    command = ["bench", "engine", "--base", "emoji-64", "--base", "segformer-b0", "--steps", "1"]
    result = CliRunner().invoke(
        cli, [*command, "--side", "64", *flags, "-o", str(tmp_path), "--json"], catch_exceptions=False
    )
    assert result.exit_code == 0
    reports = json.loads(result.stdout)["reports"]
    seen = {report["settings"]["shape"]: {row["contender"] for row in report["rows"]} for report in reports}
    for_all = {BASE, BARE, MIXED, APART, SWITCHED, NAMED}
    assert seen == {"emoji-64": for_all | {HOTSWAPPED}, "segformer-b0": for_all}
    for report in reports:
        assert all(row["load"]["images_per_s"] > 0 for row in report["rows"])
        assert {row["arrival"] for row in report["rows"]} == {"at once", "poisson"}
        assert all((row["ratio"] is None) == (row["arrival"] == "poisson") for row in report["rows"])
        assert [row["ratio"] for row in report["rows"] if row["contender"] == BASE] == [1.0]
        assert [cost["resident"] for cost in report["pool"]] == [1, 2]
        text = (tmp_path / f"{report['settings']['shape']}.md").read_text()
        assert MIXED in text
        assert report["machine"] in text
        assert (tmp_path / f"{report['settings']['shape']}.png").stat().st_size > 1000
    assert json.loads((tmp_path / "emoji-64.json").read_text())["settings"]["jobs"] == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--base", "sd9"], "no shape 'sd9'"),
        (["--adapters", "0,1"], "--adapters is '0,1'"),
        (["--jobs", "2"], "8 different adapters"),
    ],
)
def test_what_cannot_be_measured(flags: list[str], message: str) -> None:
    result = CliRunner().invoke(cli, ["bench", "engine", *flags])
    assert message in str(result.exception)
