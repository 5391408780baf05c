"""Tiny bases and one trained adapter of each task, made once for all tests of this folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.train import tiny
from train.config import TrainConfig
from train.events import Event
from train.run import train


@dataclass(frozen=True, kw_only=True)
class Trained:
    config: TrainConfig
    events: tuple[Event, ...]

    @property
    def folder(self) -> Path:
        return self.config.output

    @property
    def base(self) -> Path:
        return Path(self.config.base)


def run(config: TrainConfig) -> Trained:
    return Trained(config=config, events=tuple(train(config)))


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    import torch

    # Two threads on a tiny model wait for each other more than they compute.
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("train")


@pytest.fixture(scope="session")
def diffusion_base(workshop: Path) -> Path:
    return tiny.diffusion_base(workshop / "diffusion")


@pytest.fixture(scope="session")
def segmentation_base(workshop: Path) -> Path:
    return tiny.segmentation_base(workshop / "segmentation")


@pytest.fixture(scope="session")
def captioned(workshop: Path) -> Path:
    return tiny.captioned_folder(workshop / "captioned")


@pytest.fixture(scope="session")
def masked(workshop: Path) -> Path:
    folder = workshop / "masked"
    tiny.masked_folder(folder / "train")
    tiny.masked_folder(folder / "test", images=2)
    (folder / "labels.json").write_text('{"0": "outside", "1": "border", "2": "inside"}')
    return folder


@pytest.fixture(scope="session")
def style(workshop: Path, diffusion_base: Path, captioned: Path) -> Trained:
    return run(
        TrainConfig(
            task="text-to-image",
            base=str(diffusion_base),
            data=captioned,
            output=workshop / "style",
            steps=3,
            batch_size=4,
            rank=4,
            alpha=16,
            learning_rate=1e-2,
            sample_prompts=("red apple",),
        )
    )


@pytest.fixture(scope="session")
def subject(workshop: Path, diffusion_base: Path, captioned: Path) -> Trained:
    return run(
        TrainConfig(
            task="dreambooth",
            base=str(diffusion_base),
            data=captioned,
            output=workshop / "subject",
            steps=3,
            batch_size=2,
            rank=4,
            alpha=2,
            learning_rate=1e-2,
            instance_prompt="a photo of tok dog",
            class_prompt="a photo of a dog",
            class_data=workshop / "class",
            num_class_images=3,
            sample_every=0,
        )
    )


@pytest.fixture(scope="session")
def trimap(workshop: Path, segmentation_base: Path, masked: Path) -> Trained:
    return run(
        TrainConfig(
            task="segmentation",
            base=str(segmentation_base),
            data=masked,
            output=workshop / "trimap",
            steps=3,
            batch_size=4,
            rank=4,
            alpha=16,
            learning_rate=1e-2,
        )
    )
