"""Every family that can be trained: a tiny base of each, a short training, a reload by stock libraries."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from hubctl.adapter.layout import read_layout
from hubctl.base_models import locate_base
from hubctl.families import FAMILIES
from tests.serve.segmenters import SEGMENTERS, write_segmenter
from tests.serve.tiny_pipelines import write_pipeline
from tests.train import tiny
from tests.train.conftest import run
from tests.train.samples import TOLERANCE, differ, drawn, first_sample
from train.config import TrainConfig
from train.dataset import read_captions
from train.events import Evaluated, StepDone
from train.prepare import TRAINABLE_DENOISERS

DENOISERS = ("sd1", "sdxl", "sd3", "sd3-without-t5", "flux")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {kind: write_pipeline(folder / kind, kind) for kind in DENOISERS}


def test_the_table_of_denoisers_has_the_names_that_are_known_without_torch() -> None:
    from train.tasks.denoisers import DENOISERS as rows

    assert set(rows) == set(TRAINABLE_DENOISERS)
    assert set(rows) <= {family.name for family in FAMILIES}


def opened(
    base: Path, data: Path, output: Path, dtype: torch.dtype = torch.float32, px: int = 32, **settings: Any
) -> Any:
    from train.devices import open_accelerator
    from train.plan import make_plan
    from train.tasks.task import Setup
    from train.tasks.text_to_image import TextToImage

    config = TrainConfig(task="text-to-image", base=str(base), data=data, output=output, **settings)
    plan = make_plan(
        task=config.task, native_px=32, steps=1, batch_size=2, learning_rate=1e-3, resolution=px,
        warmup_fraction=0, rank=4, alpha=8, sample_every=0,
    )  # fmt: skip
    accelerator, _ = open_accelerator("no")
    setup = Setup(
        config=config, plan=plan, base=locate_base(str(base)), device=accelerator.device, frozen_dtype=dtype
    )
    return TextToImage(setup, read_captions(data))


@pytest.mark.parametrize("kind", DENOISERS)
def test_a_family_learns_and_diffusers_alone_draws_the_same(
    tmp_path: Path, captioned: Path, bases: dict[str, Path], kind: str
) -> None:
    from hubctl.modeling.pipelines import load_pipeline

    trained = run(
        TrainConfig(
            task="text-to-image", base=str(bases[kind]), data=captioned, output=tmp_path / "out", steps=30,
            batch_size=4, rank=8, learning_rate=2e-2, resolution=32, sample_prompts=("red apple",),
        )
    )  # fmt: skip
    metrics = next(event for event in trained.events if isinstance(event, Evaluated)).metrics
    assert metrics["loss_adapter"] < 0.99 * metrics["loss_base"]
    pipeline: Any = load_pipeline(bases[kind], torch.float32)
    pipeline.load_lora_weights(str(trained.folder))
    # What people get by the prompt alone: the trainer's own sample, made from encoded prompts.
    picture = drawn(pipeline, "red apple", kind)
    assert differ(picture, first_sample(trained.folder)) < TOLERANCE


@pytest.mark.parametrize("kind", ["sdxl", "sd3", "flux"])
def test_the_loss_is_what_diffusers_own_call_of_the_denoiser_gives(
    tmp_path: Path, captioned: Path, bases: dict[str, Path], kind: str
) -> None:
    """The pipeline asks its denoiser for one step; with the same question ours must answer the same."""
    task = opened(bases[kind], captioned, tmp_path)
    diffusion = task.diffusion
    diffusion._kind = dataclasses.replace(
        diffusion._kind, guidance=1.0
    )  # what a distilled Flux is asked with
    asked: dict[str, Any] = {}

    def remember(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        asked.setdefault("args", args)
        asked.setdefault("kwargs", kwargs)
        asked.setdefault("output", output[0])

    hook = diffusion.denoiser.register_forward_hook(remember, with_kwargs=True)
    count = len(task.prompts)
    diffusion.draw(task._shown, count)
    hook.remove()
    theirs = asked["output"][-count:]  # after the half that guidance steers away from
    noisy = asked["args"][0] if asked["args"] else asked["kwargs"]["hidden_states"]
    timestep = asked["args"][1] if len(asked["args"]) > 1 else asked["kwargs"]["timestep"]
    timesteps = timestep.float().expand(len(noisy))[-count:]
    latents = noisy[-count:]
    if kind == "flux":
        latents = diffusion.pipeline._unpack_latents(latents, 32, 32, diffusion.pipeline.vae_scale_factor)
        theirs = diffusion.pipeline._unpack_latents(theirs, 32, 32, diffusion.pipeline.vae_scale_factor)
        timesteps = timesteps * 1000
    with torch.no_grad():
        ours = diffusion._kind.predict(
            diffusion.denoiser, diffusion.pipeline, latents, timesteps, task._shown.take(range(count))
        )
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() < 1e-5


@pytest.mark.parametrize("kind", DENOISERS)
def test_a_frozen_base_in_half_precision_trains(
    tmp_path: Path, captioned: Path, bases: dict[str, Path], kind: str
) -> None:
    task = opened(bases[kind], captioned, tmp_path, torch.bfloat16)
    loss = task.loss(task.module, (0, 1), torch.Generator().manual_seed(0))
    loss.backward()
    assert torch.isfinite(loss)
    trained = [p for p in task.module.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    assert all(p.grad is not None for p in trained if p.dim() > 1)
    assert task.diffusion.pipeline.text_encoder is None


def test_what_is_only_served_is_refused_by_name(tmp_path: Path, captioned: Path) -> None:
    from hubctl.errors import InputError

    base = write_pipeline(tmp_path / "sana", "sana")
    config = TrainConfig(task="text-to-image", base=str(base), data=captioned, output=tmp_path / "out")
    with pytest.raises(InputError, match="serves but cannot train yet"):
        run(config)


@pytest.mark.parametrize("kind", SEGMENTERS)
def test_a_segmenter_learns_and_peft_alone_answers_the_same(tmp_path: Path, masked: Path, kind: str) -> None:
    from peft import PeftModel

    from hubctl.modeling.loading import load_segmenter

    base = write_segmenter(tmp_path / "base", kind)
    trained = run(
        TrainConfig(
            task="segmentation", base=str(base), data=masked, output=tmp_path / "out", steps=24,
            batch_size=4, rank=4, learning_rate=5e-3, sample_every=0,
        )
    )  # fmt: skip
    losses = [event.loss for event in trained.events if isinstance(event, StepDone)]
    assert sum(losses[-8:]) < sum(losses[:8])
    layout = read_layout(trained.folder)
    own, head = SEGMENTERS[kind].model(), SEGMENTERS[kind].head.partition(".")[0]
    inside = {
        name: layer
        for name, layer in own.named_modules()
        if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d) and f"{name}.".startswith(f"{head}.")
    }
    with_lora = {module.module for module in layout.modules}
    whole = {head.name.removesuffix(".weight") for head in layout.heads} & inside.keys()
    assert with_lora - inside.keys()
    assert len(whole) == 1
    # All of the head learns, but for what peft cannot add to.
    dilated = {name for name, layer in inside.items() if getattr(layer, "dilation", (1, 1)) != (1, 1)}
    assert inside.keys() - with_lora - whole == dilated
    model = PeftModel.from_pretrained(
        load_segmenter(base, {0: "outside", 1: "border", 2: "inside"}), str(trained.folder)
    )
    answer = model.eval()(pixel_values=torch.zeros(1, 3, 64, 64)).logits
    assert answer.shape[1] == 3
    assert torch.isfinite(answer).all()


def test_a_base_says_its_own_size(tmp_path: Path, bases: dict[str, Path]) -> None:
    from train.base_size import native_px

    assert native_px(bases["sd3"]) == tiny.SIDE_PX
    assert native_px(bases["sdxl"]) == tiny.SIDE_PX
