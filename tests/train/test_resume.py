"""Stopping, going on, and steps that go wrong: with real tiny trainings."""

from __future__ import annotations

import dataclasses
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from hubctl.errors import InputError, IntegrityError, NotFoundError
from tests.train.conftest import Trained, run
from train.config import TrainConfig
from train.dataset import read_captions
from train.events import Checkpointed, Event, Resumed, Sampled, StepDone, Stopped, Warned
from train.run import train
from train.tasks.text_to_image import TextToImage
from train.work import refuse_other_training


def stopped_at(config: TrainConfig, step: int) -> tuple[Event, ...]:
    """A training that is asked to stop after `step`."""
    done: list[Event] = []
    for event in train(config, stop=lambda: sum(isinstance(e, StepDone) for e in done) >= step):
        done.append(event)
    return tuple(done)


def weights(folder: Path) -> bytes:
    return next(folder.glob("*.safetensors")).read_bytes()


ADAFACTOR = {
    "dora": True, "lora_plus": 16.0, "accumulation": 2, "optimizer": "adafactor", "schedule": "constant",
    "ema": 0.9,
}  # fmt: skip
PRODIGY = {"rslora": True, "optimizer": "prodigy", "learning_rate": 1.0, "schedule": "linear"}


@pytest.mark.parametrize(
    ("task", "changes"),
    [
        ("style", {}),
        ("subject", {"train_text_encoder": True}),
        ("trimap", {}),
        ("style", ADAFACTOR),
        ("trimap", PRODIGY),
    ],
)
def test_half_and_half_is_the_whole_bitwise(
    task: str, changes: dict[str, Any], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    trained: Trained = request.getfixturevalue(task)
    config = dataclasses.replace(
        trained.config, steps=12, batch_size=3, sample_every=4, checkpoint_every=0, **changes
    )
    whole = dataclasses.replace(config, output=tmp_path / "whole")
    run(whole)
    halves = dataclasses.replace(config, output=tmp_path / "halves")
    first = stopped_at(halves, 6)
    assert isinstance(first[-1], Stopped)
    assert isinstance(first[-2], Checkpointed)
    assert not halves.output.exists()
    # Whatever else happened in between.
    torch.manual_seed(99)
    second = run(dataclasses.replace(halves, resume=True))
    assert [event.step for event in second.events if isinstance(event, Resumed)] == [6]
    assert [event.step for event in second.events if isinstance(event, StepDone)] == [*range(7, 13)]
    assert weights(halves.output) == weights(whole.output)
    for picture in ("loss.png", "samples/grid.png"):
        assert (halves.output / picture).read_bytes() == (whole.output / picture).read_bytes()
    assert not list((halves.output / "samples").glob("looks"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["halves", "whole"]


def test_a_checkpoint_of_another_training_is_refused_and_kept(tmp_path: Path, style: Trained) -> None:
    config = dataclasses.replace(style.config, output=tmp_path / "out", steps=6)
    stopped_at(config, 2)
    with pytest.raises(InputError, match="rank was 4, now 8") as caught:
        run(dataclasses.replace(config, resume=True, rank=8))
    assert "--restart" in (caught.value.hint or "")
    # What only looks may change, and the training is still there.
    run(dataclasses.replace(config, resume=True, sample_every=0))


def test_other_versions_are_named() -> None:
    now: dict[str, Any] = {"settings": {}, "data": {}, "base": {}, "versions": {"torch": "2", "peft": "1"}}
    refuse_other_training(now, now)
    with pytest.raises(InputError, match=r"torch 1 \(now 2\)") as caught:
        refuse_other_training(now, now | {"versions": {"torch": "1", "peft": "1"}})
    assert "torch==1" in (caught.value.hint or "")


def test_a_broken_checkpoint_is_named(tmp_path: Path, style: Trained) -> None:
    config = dataclasses.replace(style.config, output=tmp_path / "out", steps=6)
    with pytest.raises(NotFoundError, match="no unfinished training"):
        run(dataclasses.replace(config, resume=True))
    stopped_at(config, 2)
    checkpoint = tmp_path / "out.training" / "checkpoint.pt"
    whole = checkpoint.read_bytes()
    flipped = bytearray(whole)
    with zipfile.ZipFile(checkpoint) as parts:
        largest = parts.read(max(parts.infolist(), key=lambda part: part.file_size))
    flipped[whole.index(largest) + len(largest) // 2] ^= 1
    foreign = []
    for content in ([1], {"state": {}, "identity": "{}"}, {"state": 1, "identity": "1"}):
        torch.save(content, tmp_path / "foreign")
        foreign.append((tmp_path / "foreign").read_bytes())
    for broken in (b"", b"nonsense", whole[: len(whole) // 2], bytes(flipped), *foreign):
        checkpoint.write_bytes(broken)
        with pytest.raises(IntegrityError, match="not a whole checkpoint"):
            run(dataclasses.replace(config, resume=True))
    run(dataclasses.replace(config, restart=True))


# -- steps that go wrong -------------------------------------------------------------------------


Loss = Callable[[TextToImage, Any, Sequence[int], torch.Generator], torch.Tensor]


def steps_with(config: TrainConfig, loss: Loss, trained: list[torch.Tensor] | None = None) -> Iterator[Event]:
    """The steps of a training whose loss is `loss`; what was trained goes to `trained`."""
    from hubctl.base_models import locate_base
    from train.loop import run_steps
    from train.prepare import open_training, plan_for

    base = locate_base(config.base)
    plan = plan_for(config, base)
    accelerator, opened, state = open_training(config, plan, base, read_captions(config.data))
    task = cast(TextToImage, opened)

    class Other(TextToImage):
        def __init__(self) -> None:
            vars(self).update(vars(task))

        def loss(self, module: Any, indices: Sequence[int], generator: torch.Generator) -> torch.Tensor:
            return loss(task, module, indices, generator)

    yield from run_steps(Other(), config, plan, accelerator, state)
    assert state.is_finite()
    if trained is not None:
        trained += [p.detach().clone() for p in task.module.parameters() if p.requires_grad]


def spoilt_by(image: str) -> Loss:
    """NaN where `image` is in."""

    def loss(
        task: TextToImage, module: Any, indices: Sequence[int], generator: torch.Generator
    ) -> torch.Tensor:
        value = task.loss(module, indices, generator)
        return value * torch.nan if image in [task.names[index] for index in indices] else value

    return loss


def test_an_image_that_spoils_the_loss_is_named_and_its_steps_are_skipped(style: Trained) -> None:
    config = dataclasses.replace(style.config, steps=8, batch_size=1)
    events = [*steps_with(config, spoilt_by("2.png"))]
    warned = [event.message for event in events if isinstance(event, Warned)]
    assert len(warned) == 2  # four images, eight steps
    assert all("2.png" in message or "all its images" in message for message in warned)
    assert len([event for event in events if isinstance(event, StepDone)]) == 6
    named = [*steps_with(dataclasses.replace(config, steps=2, batch_size=2), spoilt_by("2.png"))]
    assert any("the loss of 2.png is no number" in e.message for e in named if isinstance(e, Warned))


def test_what_is_bad_for_good_goes_back_and_then_gives_up(style: Trained) -> None:
    config = dataclasses.replace(style.config, steps=40, batch_size=4)
    events: list[Event] = []
    with pytest.raises(InputError, match="training has diverged"):
        events.extend(steps_with(config, spoilt_by("2.png")))
    warned = [event.message for event in events if isinstance(event, Warned)]
    back = [message for message in warned if "back to step 0" in message]
    assert len(back) == 3
    assert "0.125 of the rate" in back[-1]


def as_it_is(
    task: TextToImage, module: Any, indices: Sequence[int], generator: torch.Generator
) -> torch.Tensor:
    """The task's own loss."""
    return task.loss(module, indices, generator)


@contextmanager
def one_update_without_memory() -> Iterator[None]:
    """The next step of any optimizer finds no memory."""
    waiting = [torch.OutOfMemoryError("out of memory")]

    def fail(*_: object) -> None:
        if waiting:
            raise waiting.pop()

    hook = register_optimizer_step_pre_hook(fail)
    try:
        yield
    finally:
        hook.remove()


def test_what_does_not_fit_into_memory_is_cut_smaller(style: Trained) -> None:
    def one_at_once(
        task: TextToImage, module: Any, indices: Sequence[int], generator: torch.Generator
    ) -> Any:
        if len(indices) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return task.loss(module, indices, generator)

    def none(task: TextToImage, module: Any, indices: Sequence[int], generator: torch.Generator) -> Any:
        raise torch.OutOfMemoryError("out of memory")

    def wrong(task: TextToImage, module: Any, indices: Sequence[int], generator: torch.Generator) -> Any:
        raise RuntimeError("something else")

    config = dataclasses.replace(style.config, steps=3, batch_size=4)
    events = [*steps_with(config, one_at_once)]
    warned = [event.message for event in events if isinstance(event, Warned)]
    assert [message.partition(":")[0] for message in warned] == [
        "out of memory with 4 images at once", "out of memory with 2 images at once",
    ]  # fmt: skip
    assert [event.step for event in events if isinstance(event, StepDone)] == [1, 2, 3]
    with pytest.raises(InputError, match="not even one image fits"):
        [*steps_with(config, none)]
    with pytest.raises(RuntimeError, match="something else"):
        [*steps_with(config, wrong)]
    with one_update_without_memory():
        events = [*steps_with(config, as_it_is)]
    (message,) = [event.message for event in events if isinstance(event, Warned)]
    assert message.startswith("out of memory with 4 images at once")
    assert [event.step for event in events if isinstance(event, StepDone)] == [1, 2, 3]


def test_parts_of_a_step_come_to_the_same_as_the_whole(style: Trained) -> None:
    def same_noise(task: TextToImage, module: Any, indices: Sequence[int], generator: torch.Generator) -> Any:
        """Each image with noise of its own, however they are cut into parts."""
        errors = [
            task.diffusion.denoising_loss(
                module,
                task._latents.draw([index], torch.Generator().manual_seed(index)),
                task._texts.take([index]),
                torch.Generator().manual_seed(index),
                torch.tensor([500]),
            )
            for index in indices
        ]
        return torch.cat(errors).mean()

    made: list[list[torch.Tensor]] = []
    for batch_size, accumulation in ((4, 1), (2, 2), (1, 4)):
        config = dataclasses.replace(
            style.config, steps=3, batch_size=batch_size, accumulation=accumulation, learning_rate=1e-3
        )
        trained: list[torch.Tensor] = []
        list(steps_with(config, same_noise, trained))
        made.append(trained)
    for other in made[1:]:
        for one, two in zip(made[0], other, strict=True):
            assert torch.allclose(one, two, atol=1e-5)


def test_samples_go_on_in_the_same_grid(tmp_path: Path, style: Trained) -> None:
    config = dataclasses.replace(style.config, output=tmp_path / "out", steps=6, sample_every=2)
    first = stopped_at(config, 3)
    second = run(dataclasses.replace(config, resume=True))
    drawn = [event.step for event in (*first, *second.events) if isinstance(event, Sampled)]
    assert drawn == [0, 2, 4, 6]
