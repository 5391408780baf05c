from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hubctl.base_models import BaseModel
from hubctl.errors import InputError
from hubctl.families import FAMILIES
from hubctl.refs import PinnedRef
from serve.engine.config import EngineConfig
from serve.engine.engine import open_engine
from serve.engine.requests import Engine, ImageRequest, LoraUse, SegmentRequest

_REF = PinnedRef("alice/cats", "main", "0" * 40, "1" * 64)


def _open(family: str, fetched: list[PinnedRef]) -> Engine:
    found = next(f for f in FAMILIES if f.name == family)
    base = BaseModel(id="hubctl/echo", path=Path("/"), family=found, commit=None, sha256="0" * 64)

    def fetch(ref: PinnedRef) -> Path:
        fetched.append(ref)
        return Path("/")

    return open_engine(base, EngineConfig(kind="echo", total_rows=9), fetch)


def test_the_same_request_gives_the_same_colour_and_another_another() -> None:
    fetched: list[PinnedRef] = []
    engine = _open("sd1", fetched)
    plain = engine.generate(ImageRequest(prompt="a cat", seed=1, num_images=2, width=16, height=8))
    assert [image.shape for image in plain.images] == [(8, 16, 3)] * 2
    assert plain.seeds == (1, 2)
    again = engine.generate(ImageRequest(prompt="a cat", seed=2))
    assert (again.images[0][0, 0] == plain.images[1][0, 0]).all()
    adapted = engine.generate(ImageRequest(prompt="a cat", seed=2, loras=(LoraUse(ref=_REF),)))
    assert (adapted.images[0] != again.images[0]).any()
    assert fetched == [_REF]
    assert engine.info().resident == (_REF,)
    assert engine.info().rows_free == 4


def test_bright_and_dark() -> None:
    engine = _open("segformer", [])
    image = np.zeros((4, 6, 3), np.uint8)
    image[:, 3:] = 255
    result = engine.segment(SegmentRequest(image=image))
    assert result.labels.tolist() == [[0, 0, 0, 1, 1, 1]] * 4
    swapped = engine.segment(SegmentRequest(image=image, adapter=LoraUse(ref=_REF)))
    assert swapped.labels.tolist() == [[1, 1, 1, 0, 0, 0]] * 4


def test_the_wrong_task_is_refused() -> None:
    with pytest.raises(InputError, match="does text-to-image, not image-segmentation"):
        _open("sd1", []).segment(SegmentRequest(image=np.zeros((1, 1, 3), np.uint8)))


def test_it_needs_no_torch() -> None:
    code = "import serve.engine.engine, serve.engine.echo, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_running": 0}, "max_running is 0"),
        ({"total_rows": 1}, "total_rows is 1"),
        ({"max_gather_s": float("nan")}, "max_gather_s is nan"),
    ],
)
def test_settings_that_leave_no_room(settings: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        EngineConfig(**settings)  # type: ignore[arg-type]
