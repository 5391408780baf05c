from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hubctl.base_models import embedded_bases, locate_base
from hubctl.errors import InputError
from serve.engine.defaults import Defaults, filled, stated_defaults
from serve.engine.generate import ImageEngine
from serve.engine.requests import ImageRequest
from tests.serve import reference, tiny, tiny_pipelines

OPEN = ImageRequest(prompt="apple", seed=1)


def write_card(folder: Path, header: str) -> Path:
    (folder / "README.md").write_text(f"---\n{header}\n---\n\n# A base\n")
    return folder


def parameters(**values: object) -> str:
    return json.dumps({"inference": {"parameters": values}})  # JSON is YAML


@pytest.mark.parametrize(
    ("header", "stated"),
    [
        (parameters(num_inference_steps=8, guidance_scale=0, seed=3), (8, 0.0)),
        (parameters(guidance_scale=3.5), (None, 3.5)),
        (parameters(), (None, None)),
        ("inference: false", (None, None)),
        ("license: mit", (None, None)),
    ],
)
def test_what_a_card_states(tmp_path: Path, header: str, stated: tuple[int | None, float | None]) -> None:
    found = stated_defaults(write_card(tmp_path, header))
    assert (found.num_inference_steps, found.guidance_scale) == stated


@pytest.mark.parametrize(
    "values",
    [
        {"num_inference_steps": 0},
        {"num_inference_steps": True},
        {"num_inference_steps": 2.5},
        {"guidance_scale": "high"},
        {"guidance_scale": -1},
        {"guidance_scale": float("nan")},
    ],
)
def test_what_no_card_can_mean(tmp_path: Path, values: dict[str, object]) -> None:
    with pytest.raises(InputError, match=rf"README.md: inference.parameters.{next(iter(values))} is"):
        stated_defaults(write_card(tmp_path, parameters(**values).replace("NaN", ".nan")))


def test_the_first_that_states_it_counts_and_the_request_before_all() -> None:
    card, pipeline = Defaults(guidance_scale=1.5), Defaults(num_inference_steps=50, guidance_scale=7.5)
    assert filled(OPEN, card, pipeline, max_steps=100) == replace(
        OPEN, num_inference_steps=50, guidance_scale=1.5
    )
    assert filled(OPEN, card, pipeline, max_steps=30).num_inference_steps == 30
    asked = replace(OPEN, num_inference_steps=40, guidance_scale=0.0)
    assert filled(asked, card, pipeline, max_steps=30) == asked


def test_the_embedded_base_states_what_its_figures_were_drawn_with() -> None:
    folder = embedded_bases()["emoji-64"]
    drawn = json.loads((folder / "judge.json").read_text())["inference"]
    assert stated_defaults(folder) == Defaults(
        num_inference_steps=drawn["steps"], guidance_scale=drawn["guidance"]
    )


def test_an_engine_uses_and_tells_them(tmp_path: Path) -> None:
    base = tiny_pipelines.write_pipeline(tmp_path, "sd1")
    for header, steps, guidance in [
        (parameters(num_inference_steps=3, guidance_scale=2), 3, 2.0),
        ("license: mit", 5, 7.5),  # diffusers' own 50 and 7.5, and the server's limit
    ]:
        write_card(base, header)
        engine = ImageEngine(
            locate_base(str(base)), tiny.engine_config(total_rows=2, max_steps=5), tiny.fetch
        )
        try:
            result = engine.generate(OPEN)
            floats = engine.generate_floats(OPEN)
        finally:
            engine.close()
        assert (result.num_inference_steps, result.guidance_scale) == (steps, guidance)
        said = replace(OPEN, num_inference_steps=steps, guidance_scale=guidance)
        assert np.abs(floats - reference.images(base, said)).max() <= reference.TOLERANCE
