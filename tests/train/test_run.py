"""Real trainings of three steps on tiny random bases, then diffusers and peft alone with the folder."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hubctl.adapter.card import read_card_data
from hubctl.adapter.layout import read_layout
from hubctl.adapter.package import read_manifest
from hubctl.errors import ConflictError, InputError, NotFoundError
from tests.train import tiny
from tests.train.conftest import Trained, run
from train.config import TrainConfig
from train.events import (
    Checkpointed,
    Evaluated,
    Preparing,
    Sampled,
    Saved,
    Started,
    StepDone,
    Verified,
    Warned,
    event_data,
    event_kind,
)
from train.run import train

TIMESTEPS = (10, 500, 900)


def pipeline_at(base: Path) -> Any:
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline.from_pretrained(base, safety_checker=None)


def denoise(unet: Any) -> torch.Tensor:
    """The UNet's answers to fixed inputs, [3, 4, 16, 16]."""
    generator = torch.Generator().manual_seed(1)
    noisy = torch.randn(3, 4, 16, 16, generator=generator)
    text = torch.randn(3, 12, 16, generator=generator)
    with torch.no_grad():
        return unet.eval()(noisy, torch.tensor(TIMESTEPS), text).sample


def logits_of(model: Any, pictures: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(pixel_values=pictures).logits


# -- the events ----------------------------------------------------------------------------------


def test_the_events_tell_the_whole_story(style: Trained) -> None:
    kinds = [type(event) for event in style.events if not isinstance(event, Preparing | Checkpointed)]
    assert kinds == [
        Started, Sampled, StepDone, StepDone, Sampled, StepDone, Sampled, Evaluated, Verified, Saved,
    ]  # fmt: skip
    saved = [event.step for event in style.events if isinstance(event, Checkpointed)]
    assert saved == [1, 2, 3]
    steps = [event for event in style.events if isinstance(event, StepDone)]
    assert [event.step for event in steps] == [1, 2, 3]
    assert steps[-1].eta_s == 0
    assert all(event.steps == 3 and event.steps_per_s > 0 for event in steps)
    for event in style.events:
        assert json.loads(json.dumps(event_data(event)))
    assert event_kind(steps[0]) == "step_done"


# -- diffusers alone -----------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["style", "subject"])
def test_diffusers_alone_loads_every_key_with_its_strength(task: str, request: pytest.FixtureRequest) -> None:
    trained: Trained = request.getfixturevalue(task)
    pipeline = pipeline_at(trained.base)
    before = denoise(pipeline.unet)
    pipeline.load_lora_weights(trained.folder)
    after = denoise(pipeline.unet)
    layout = read_layout(trained.folder)
    loaded = {
        name.removesuffix(f".lora_{half}.default_0")
        for name, _ in pipeline.unet.named_modules()
        for half in "AB"
        if name.endswith(f".lora_{half}.default_0")
    }
    assert loaded == {module.module for module in layout.modules}
    assert len(layout.header.tensors) == 2 * len(loaded)
    assert {module.alpha for module in layout.modules} == {trained.config.alpha}
    assert (after - before).abs().max() > 1e-4
    # By hand, from the file alone: W + alpha / rank * B A.
    by_hand = pipeline_at(trained.base).unet
    merge(by_hand, trained)
    assert (denoise(by_hand) - after).abs().max() < 1e-5


def merge(unet: Any, trained: Trained) -> None:
    from safetensors.torch import load_file

    tensors = load_file(trained.folder / "pytorch_lora_weights.safetensors")
    scale = float(trained.config.alpha or 0) / trained.config.rank
    for key in tensors:
        if key.endswith(".lora_A.weight"):
            a, b = tensors[key], tensors[key.replace("lora_A", "lora_B")]
            layer = unet.get_submodule(key.removeprefix("unet.").removesuffix(".lora_A.weight"))
            layer.weight.data += scale * b @ a


def test_the_loaded_adapter_is_the_trained_module(
    tmp_path: Path, diffusion_base: Path, captioned: Path
) -> None:
    from hubctl.base_models import locate_base
    from train.adapt import parameter_groups
    from train.dataset import read_captions
    from train.devices import open_accelerator
    from train.fused import unfuse_lora
    from train.loop import run_steps
    from train.optimizers import open_optimizer
    from train.plan import make_plan
    from train.state import State
    from train.tasks.task import Setup
    from train.tasks.text_to_image import TextToImage

    config = TrainConfig(task="text-to-image", base=str(diffusion_base), data=captioned, output=tmp_path)
    plan = make_plan(
        task=config.task, native_px=32, steps=3, batch_size=4, learning_rate=1e-2, resolution=None,
        warmup_fraction=0, rank=4, alpha=16, sample_every=0,
    )  # fmt: skip
    accelerator, dtype = open_accelerator("no")
    base = locate_base(config.base)
    setup = Setup(config=config, plan=plan, base=base, device=accelerator.device, frozen_dtype=dtype)
    task = TextToImage(setup, read_captions(captioned))
    untrained = denoise(task.module)
    state = State(
        task.module,
        open_optimizer(parameter_groups(task.module, plan, 1), config, plan),
        accelerator,
        plan,
        config.seed,
    )
    assert len(list(run_steps(task, config, plan, accelerator, state))) == 3
    unfuse_lora(task.module)  # sums in peft's own order
    trained = denoise(task.module)
    task.save(tmp_path)
    pipeline = pipeline_at(diffusion_base)
    pipeline.load_lora_weights(tmp_path)
    assert (trained - untrained).abs().max() > 1e-3
    assert (denoise(pipeline.unet) - trained).abs().max() < 1e-6


def test_only_the_adapter_is_in_float32_and_learns(style: Trained) -> None:
    layout = read_layout(style.folder)
    assert {info.dtype for info in layout.header.tensors.values()} == {"F32"}
    started = next(event for event in style.events if isinstance(event, Started))
    counted = sum(int(np.prod(module.a_shape) + np.prod(module.b_shape)) for module in layout.modules)
    assert started.trainable_parameters == counted


@pytest.mark.parametrize(("prediction_type", "tiny_vae"), [("v_prediction", True), ("sample", False)])
def test_other_predictions_and_autoencoders_train(
    tmp_path: Path, captioned: Path, prediction_type: str, tiny_vae: bool
) -> None:
    base = tiny.diffusion_base(tmp_path / "base", prediction_type=prediction_type, tiny_vae=tiny_vae)
    trained = run(
        TrainConfig(
            task="text-to-image", base=str(base), data=captioned, output=tmp_path / "out", steps=15,
            batch_size=4, rank=8, learning_rate=5e-2, sample_every=0,
        )
    )  # fmt: skip
    metrics = next(event for event in trained.events if isinstance(event, Evaluated)).metrics
    assert metrics["loss_adapter"] < metrics["loss_base"]


# -- dreambooth ----------------------------------------------------------------------------------


def test_missing_class_images_are_drawn_once_and_kept(subject: Trained) -> None:
    folder = subject.config.class_data
    assert folder is not None
    assert len(list(folder.glob("*.png"))) == subject.config.num_class_images
    metrics = next(event for event in subject.events if isinstance(event, Evaluated)).metrics
    assert {"loss_adapter", "class_loss_adapter"} <= metrics.keys()
    assert read_card_data(subject.folder)["instance_prompt"] == "a photo of tok dog"


# -- segmentation --------------------------------------------------------------------------------


def test_peft_alone_loads_adapter_and_head(trimap: Trained) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSemanticSegmentation

    base = AutoModelForSemanticSegmentation.from_pretrained(
        trimap.base, num_labels=3, ignore_mismatched_sizes=True
    )
    pictures = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    before = logits_of(base, pictures)
    loaded = PeftModel.from_pretrained(base, str(trimap.folder))
    after = logits_of(loaded, pictures)
    assert (after - before).abs().max() > 1e-3
    layout = read_layout(trimap.folder)
    keys = set(loaded.state_dict())
    for module in layout.modules:
        assert f"base_model.model.{module.module}.lora_A.default.weight" in keys
        assert module.scale == 4.0
    assert {head.name for head in layout.heads} == {
        "decode_head.classifier.weight",
        "decode_head.classifier.bias",
    }
    assert "decode_head.linear_fuse" in {module.module for module in layout.modules}


def test_what_is_judged_is_what_is_saved(trimap: Trained, masked: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSemanticSegmentation

    from train.confusion import confusion
    from train.masks import read_masks
    from train.scores import scores

    base = AutoModelForSemanticSegmentation.from_pretrained(
        trimap.base, num_labels=3, ignore_mismatched_sizes=True
    )
    model = PeftModel.from_pretrained(base, str(trimap.folder))

    def predict(paths: Any) -> torch.Tensor:
        pixels = np.stack([np.asarray(Image.open(path)) for path in paths])
        pictures = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
        return logits_of(model, pictures)

    matrix = confusion(predict, read_masks(masked).test, true_classes=3, predicted_classes=3)
    metrics = next(event for event in trimap.events if isinstance(event, Evaluated)).metrics
    assert scores(matrix).mean_iou == pytest.approx(metrics["miou"], abs=1e-6)
    assert sum(map(sum, matrix)) == 2 * 32 * 32


def test_pictures_are_prepared_as_the_bases_own_processor_does(
    tmp_path: Path, segmentation_base: Path
) -> None:
    from transformers import AutoImageProcessor

    from hubctl.modeling.picture_input import picture_input
    from train.tasks.segmentation import load_pictures

    tiny.picture(3, side_px=50).resize((50, 41)).save(tmp_path / "a.png")
    fed = picture_input(segmentation_base)
    ours = fed.normalise(load_pictures([tmp_path / "a.png"], fed) / 255)
    processor = AutoImageProcessor.from_pretrained(segmentation_base)
    theirs = processor(images=np.asarray(Image.open(tmp_path / "a.png")), return_tensors="pt")["pixel_values"]
    assert torch.equal(ours, theirs)


def test_another_size_than_the_bases_own_is_warned_about(tmp_path: Path, trimap: Trained) -> None:
    trained = run(
        dataclasses.replace(trimap.config, output=tmp_path / "out", steps=1, resolution=64, sample_every=0)
    )
    warned = [event.message for event in trained.events if isinstance(event, Warned)]
    assert len(warned) == 1
    assert "trained at 64 px" in warned[0]
    assert "at its own 32 x 32 px" in warned[0]
    assert not [event for event in trimap.events if isinstance(event, Warned)]


def test_a_head_of_the_same_classes_keeps_what_the_base_learnt(
    tmp_path: Path, segmentation_base: Path
) -> None:
    from safetensors.torch import load_file

    data = tiny.masked_folder(tmp_path / "data", classes=2)
    run(
        TrainConfig(
            task="segmentation", base=str(segmentation_base), data=data, output=tmp_path / "out",
            steps=1, learning_rate=1e-9, sample_every=0,
        )
    )  # fmt: skip
    base = load_file(segmentation_base / "model.safetensors")["decode_head.classifier.weight"]
    saved = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert (saved["base_model.model.decode_head.classifier.weight"] - base).abs().max() < 1e-6


def test_the_adapter_knows_its_base_and_classes(trimap: Trained) -> None:
    config = json.loads((trimap.folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(trimap.base)
    assert config["target_modules"] == [
        "decode_head.linear_fuse",
        "decode_head.linear_projections.0.proj",
        "decode_head.linear_projections.1.proj",
        "q_proj",
        "v_proj",
    ]
    manifest = read_manifest(trimap.folder)
    assert manifest is not None
    assert manifest.data["labels"] == {"0": "outside", "1": "border", "2": "inside"}
    assert manifest.data["images"] == 4
    assert manifest.data["held_out_images"] == 2
    assert {"miou", "base_miou", "iou_inside"} <= manifest.metrics.keys()


@pytest.mark.parametrize("headless", [True, False])
def test_a_linear_head_over_a_vision_transformer_is_learnt(
    tmp_path: Path, masked: Path, headless: bool
) -> None:
    from peft import PeftModel

    from hubctl.adapter.card import CARD
    from hubctl.modeling.loading import load_segmenter

    base = tiny.vision_base(tmp_path / "base", headless=headless)
    trained = run(
        TrainConfig(
            task="segmentation", base=str(base), data=masked, output=tmp_path / "out",
            steps=2, batch_size=2, resolution=48, sample_every=0,
        )
    )  # fmt: skip
    layout = read_layout(trained.folder)
    assert {head.name for head in layout.heads} == {"classifier.weight", "classifier.bias"}
    assert {m.module.rpartition(".")[2] for m in layout.modules} == {"q_proj", "v_proj"}
    metrics = next(event for event in trained.events if isinstance(event, Evaluated)).metrics
    assert ("base_miou" in metrics) != headless
    assert "load_segmenter(" in (trained.folder / CARD).read_text()
    labels = dict.fromkeys(range(3), "")
    loaded = PeftModel.from_pretrained(load_segmenter(base, labels), str(trained.folder))
    assert logits_of(loaded, torch.zeros(1, 3, 48, 48)).shape == (1, 3, 6, 6)


def test_learning_helps(tmp_path: Path, segmentation_base: Path, masked: Path) -> None:
    trained = run(
        TrainConfig(
            task="segmentation", base=str(segmentation_base), data=masked, output=tmp_path / "out",
            steps=80, batch_size=4, rank=8, learning_rate=2e-2, sample_every=0,
        )
    )  # fmt: skip
    losses = [event.loss for event in trained.events if isinstance(event, StepDone)]
    metrics = next(event for event in trained.events if isinstance(event, Evaluated)).metrics
    assert np.mean(losses[-10:]) < 0.7 * losses[0]
    assert metrics["miou"] > metrics["base_miou"]


# -- the folder ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "weights"),
    [
        ("style", "pytorch_lora_weights.safetensors"),
        ("subject", "pytorch_lora_weights.safetensors"),
        ("trimap", "adapter_model.safetensors"),
    ],
)
def test_the_folder_is_complete(task: str, weights: str, request: pytest.FixtureRequest) -> None:
    trained: Trained = request.getfixturevalue(task)
    names = {
        path.relative_to(trained.folder).as_posix() for path in trained.folder.rglob("*") if path.is_file()
    }
    assert {weights, "README.md", "hubctl.json", "loss.png"} <= names
    card = read_card_data(trained.folder)
    assert card["base_model"] == str(trained.base)
    assert card["base_model_relation"] == "adapter"
    for picture in card.get("widget", []):
        assert picture["output"]["url"] in names
    manifest = read_manifest(trained.folder)
    assert manifest is not None
    assert manifest.task == trained.config.task
    assert manifest.settings["rank"] == 4
    assert manifest.settings["alpha"] == trained.config.alpha
    assert len(manifest.data["sha256"]) == 64
    assert len(manifest.base.sha256 or "") == 64
    for picture in trained.folder.rglob("*.png"):
        Image.open(picture).verify()


def test_figures_on_training_images_do_not_enter_the_card(style: Trained, trimap: Trained) -> None:
    assert "model-index" not in read_card_data(style.folder)
    assert "model-index" in read_card_data(trimap.folder)


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(
    tmp_path: Path, style: Trained, trimap: Trained
) -> None:
    # The first ones drew samples, their twins draw none: looking changes nothing.
    for trained in (style, trimap):
        weights = next(trained.folder.glob("*.safetensors")).name
        made = []
        for seed in (trained.config.seed, 1):
            output = tmp_path / f"{trained.config.task}-{seed}"
            run(dataclasses.replace(trained.config, output=output, seed=seed, sample_every=0))
            made.append((output / weights).read_bytes())
        assert made[0] == (trained.folder / weights).read_bytes()
        assert made[1] != made[0]


# -- failures ------------------------------------------------------------------------------------


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_training_that_diverges_leaves_nothing(tmp_path: Path, style: Trained) -> None:
    config = dataclasses.replace(
        style.config, output=tmp_path / "out", learning_rate=1e30, steps=10, checkpoint_every=0
    )
    with pytest.raises(InputError, match="training has diverged") as caught:
        run(config)
    assert "--lr" in (caught.value.hint or "")
    assert left_in(tmp_path) == []
    # After a single step the weights are numbers, but what they answer is none.
    with pytest.raises(InputError, match="training has diverged") as caught:
        run(dataclasses.replace(config, steps=1, sample_every=0))
    assert "--lr" in (caught.value.hint or "")
    assert left_in(tmp_path) == []


def test_a_working_folder_that_is_removed_is_named(tmp_path: Path, style: Trained) -> None:
    events = train(dataclasses.replace(style.config, output=tmp_path / "out", checkpoint_every=0))
    for event in events:
        if isinstance(event, StepDone):
            shutil.rmtree(tmp_path / "out.training")
            break
    with pytest.raises(InputError, match=r"out\.training was removed while the training worked in it"):
        list(events)
    assert left_in(tmp_path) == []


def test_a_training_that_is_closed_before_its_first_checkpoint_leaves_nothing(
    tmp_path: Path, style: Trained
) -> None:
    events = train(dataclasses.replace(style.config, output=tmp_path / "out", checkpoint_every=0))
    for event in events:
        if isinstance(event, StepDone):
            break
    assert left_in(tmp_path) == ["out.training"]
    events.close()
    assert left_in(tmp_path) == []


def test_an_adapter_that_is_there_is_kept_until_the_new_one_is_whole(tmp_path: Path, style: Trained) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "mine.txt").write_text("precious")
    config = dataclasses.replace(style.config, output=output, sample_every=0, checkpoint_every=0)
    with pytest.raises(ConflictError):
        run(config)
    broken = dataclasses.replace(config, overwrite=True, learning_rate=1e30, steps=10)
    with pytest.raises(InputError):
        run(broken)
    assert left_in(output) == ["mine.txt"]
    run(dataclasses.replace(config, overwrite=True))
    assert "mine.txt" not in left_in(output)
    assert left_in(tmp_path) == ["out"]


def test_faults_are_found_before_anything_is_loaded(tmp_path: Path, style: Trained, masked: Path) -> None:
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"base": "emoji-46"}, NotFoundError, "no base model 'emoji-46'"),
        ({"task": "segmentation", "data": masked}, InputError, "which cannot learn segmentation"),
        ({"data": tmp_path / "none"}, InputError, "there is no folder"),
    ]
    for changes, error, message in cases:
        config = dataclasses.replace(style.config, output=tmp_path / "out", **changes)
        with pytest.raises(error, match=message):
            # The first event comes before torch is imported: none may come at all.
            next(train(config))
    assert left_in(tmp_path) == []


def test_targets_that_match_nothing_are_refused_with_near_names(tmp_path: Path, style: Trained) -> None:
    config = dataclasses.replace(style.config, output=tmp_path / "out", targets=("to_w",))
    with pytest.raises(InputError, match="no layer of the base is called 'to_w'") as caught:
        run(config)
    assert "to_v" in (caught.value.hint or "")
    assert left_in(tmp_path) == []


def test_half_precision_on_a_cpu(tmp_path: Path, style: Trained) -> None:
    config = dataclasses.replace(style.config, output=tmp_path / "out", sample_every=0)
    run(dataclasses.replace(config, mixed_precision="bf16"))
    layout = read_layout(tmp_path / "out")
    assert {info.dtype for info in layout.header.tensors.values()} == {"F32"}
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="fp16 needs a GPU"):
            run(dataclasses.replace(config, mixed_precision="fp16", overwrite=True))
