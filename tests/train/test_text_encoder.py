"""Text encoders that train beside the denoiser, and what the stock libraries make of the file."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from hubctl.adapter.layout import read_layout
from hubctl.errors import InputError
from hubctl.families import detect_family
from hubctl.modeling.pipelines import load_pipeline
from tests.serve.tiny_pipelines import write_pipeline
from tests.train.conftest import Trained, run
from tests.train.samples import TOLERANCE, differ, drawn, first_sample
from tests.train.test_plan import plan
from train.config import TrainConfig
from train.events import Evaluated

DENOISERS = ("sd1", "sdxl", "sd3", "flux")


@pytest.mark.parametrize("kind", DENOISERS)
def test_clip_learns_along_and_diffusers_alone_draws_the_same(
    tmp_path: Path, captioned: Path, kind: str
) -> None:
    base = write_pipeline(tmp_path / "base", kind)
    trained = run(
        TrainConfig(
            task="text-to-image", base=str(base), data=captioned, output=tmp_path / "out", steps=20,
            batch_size=4, rank=4, alpha=8, learning_rate=2e-2, resolution=32, train_text_encoder=True,
            sample_prompts=("red apple",), caption_dropout=0.2,
        )
    )  # fmt: skip
    metrics = next(event for event in trained.events if isinstance(event, Evaluated)).metrics
    assert metrics["loss_adapter"] < metrics["loss_base"]
    changed = {module.component for module in read_layout(trained.folder).modules}
    family = detect_family(base)
    assert changed == set(family.components)
    pipeline: Any = load_pipeline(base, torch.float32)
    pipeline.load_lora_weights(str(trained.folder))
    sample = first_sample(trained.folder)
    assert differ(drawn(pipeline, "red apple", kind), sample) < TOLERANCE
    # The encoder's part matters, or the test would not see it missing.
    for name in family.text_encoders:
        getattr(pipeline, name).disable_adapters()
    assert differ(drawn(pipeline, "red apple", kind), sample) > TOLERANCE


def test_its_rate_is_its_own_and_the_other_parts_stay_as_they_were(tmp_path: Path, style: Trained) -> None:
    """With next to no rate the encoder stays next to untouched, and the denoiser learns as without it."""
    config = dataclasses.replace(
        style.config, output=tmp_path / "out", train_text_encoder=True, text_encoder_lr=1e-12, sample_every=0
    )
    still = run(config)
    name = "pytorch_lora_weights.safetensors"
    with safe_open(still.folder / name, "pt") as ours, safe_open(style.folder / name, "pt") as without:
        shared = set(without.keys())
        added = set(ours.keys()) - shared
        assert shared < set(ours.keys())
        for key in shared:
            torch.testing.assert_close(ours.get_tensor(key), without.get_tensor(key), atol=1e-5, rtol=1e-3)
        assert all(key.startswith("text_encoder.text_model.encoder.layers.") for key in added)
        assert max(float(ours.get_tensor(key).abs().max()) for key in added if "lora_B" in key) < 1e-10
    settings = json.loads((still.folder / "recipe.lock").read_text())["settings"]
    assert (settings["train_text_encoder"], settings["text_encoder_lr"]) == (True, 1e-12)


@pytest.mark.parametrize(("optimizer", "part"), [("adamw", 0.5), ("prodigy", 1.0)])
def test_the_rate_is_half_of_the_other_unless_one_rate_is_found_for_all(optimizer: str, part: float) -> None:
    made = plan(train_text_encoder=True, learning_rate=0.5, optimizer=optimizer)
    assert made.text_encoder_lr == 0.5 * part


def test_a_preset_fills_what_is_left_open() -> None:
    face = plan(task="dreambooth", native_px=512, preset="face")
    assert (face.steps, face.batch_size, face.train_text_encoder) == (1200, 2, True)
    mine = plan(task="dreambooth", native_px=512, preset="face", steps=7, train_text_encoder=False)
    assert (mine.steps, mine.batch_size, mine.train_text_encoder) == (7, 2, False)
    for name in ("object", "face", "style"):
        assert 1e-4 <= plan(task="dreambooth", native_px=512, preset=name).learning_rate <= 5e-4


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"task": "text-to-image", "text_encoder_lr": 1e-5}, "the text encoder does not train"),
        ({"task": "segmentation", "train_text_encoder": True}, "has no text encoder"),
        ({"task": "text-to-image", "preset": "face"}, "--preset face is for one subject"),
        (
            {"task": "dreambooth", "preset": "face", "instance_prompt": "a tok person"},
            "a face needs images of other people",
        ),
        (
            {"task": "text-to-image", "train_text_encoder": True, "text_encoder_lr": 1.0,
             "optimizer": "prodigy"},
            "prodigy finds one rate",
        ),
    ],
)  # fmt: skip
def test_what_does_not_belong_together_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        TrainConfig(base="emoji-64", data=Path("d"), output=Path("o"), **settings)


def test_dora_in_a_text_encoder_is_refused_before_it_trains(tmp_path: Path, style: Trained) -> None:
    """Diffusers would load such an adapter without its lengths."""
    config = dataclasses.replace(style.config, output=tmp_path / "out", train_text_encoder=True, dora=True)
    with pytest.raises(InputError, match="no DoRA into a text encoder") as caught:
        run(config)
    assert "--no-train-text-encoder" in (caught.value.hint or "")
    assert list(tmp_path.iterdir()) == []
