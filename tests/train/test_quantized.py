"""A frozen base in fewer bits: it trains, and what is saved fits the whole base too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hubctl.errors import InputError
from hubctl.modeling.pipelines import load_pipeline
from tests.serve.tiny_pipelines import write_pipeline
from tests.train.conftest import run
from train.config import TrainConfig
from train.events import Evaluated, Verified


@pytest.mark.parametrize(("kind", "weights"), [("sd1", "int8"), ("flux", "int8"), ("sd3", "fp8")])
def test_a_base_of_8_bits_trains_and_its_adapter_fits_the_whole_base(
    tmp_path: Path, captioned: Path, kind: str, weights: Any
) -> None:
    base = write_pipeline(tmp_path / "base", kind)
    trained = run(
        TrainConfig(
            task="text-to-image", base=str(base), data=captioned, output=tmp_path / "out", steps=20,
            batch_size=4, rank=4, learning_rate=2e-2, resolution=32, sample_every=0, quantize=weights,
        )
    )  # fmt: skip
    metrics = next(event for event in trained.events if isinstance(event, Evaluated)).metrics
    assert metrics["loss_adapter"] < metrics["loss_base"]
    assert any(isinstance(event, Verified) for event in trained.events)
    pipeline: Any = load_pipeline(base, torch.float32)
    pipeline.load_lora_weights(str(trained.folder))
    denoiser = pipeline.unet if kind == "sd1" else pipeline.transformer
    assert all(torch.isfinite(value).all() for name, value in denoiser.named_parameters() if "lora" in name)


def test_what_a_quantised_base_cannot_do_is_refused() -> None:
    settings: dict[str, Any] = {"base": "b", "data": Path("d"), "output": Path("o"), "quantize": "int8"}
    with pytest.raises(InputError, match="not with --dora"):
        TrainConfig(task="text-to-image", dora=True, **settings)
    with pytest.raises(InputError, match="not with segmentation"):
        TrainConfig(task="segmentation", **settings)


def test_4_bits_are_refused_without_a_gpu(tmp_path: Path, captioned: Path, diffusion_base: Path) -> None:
    config = TrainConfig(
        task="text-to-image",
        base=str(diffusion_base),
        data=captioned,
        output=tmp_path / "out",
        quantize="nf4",
    )
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="on a GPU only"):
            run(config)


def test_4_bits_without_their_library_are_refused_by_name() -> None:
    import importlib.util

    from hubctl.modeling.quantize import quantize

    if importlib.util.find_spec("bitsandbytes") is None:
        with pytest.raises(InputError, match="'nf4' need bitsandbytes") as caught:
            quantize(torch.nn.Linear(2, 2), "nf4")
        assert caught.value.hint == "pip install bitsandbytes"
    else:
        module = torch.nn.Sequential(torch.nn.Linear(64, 64))
        quantize(module, "nf4")
        assert type(module[0]).__name__ == "Linear4bit"
