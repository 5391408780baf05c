"""An engine that has been warmed up has run all of its modules, and waits for nobody."""

from __future__ import annotations

import pytest

from hubctl.base_models import locate_base
from serve.bench.adapters import fetch
from serve.engine.config import EngineConfig
from serve.engine.generate import ImageEngine
from serve.engine.segment import SegmentEngine


@pytest.mark.parametrize(
    ("kind", "base", "modules"),
    [(ImageEngine, "emoji-64", {"text_encoder", "unet", "vae"}), (SegmentEngine, "emoji-64-seg", {"model"})],
)
def test_every_module_has_run(
    kind: type[ImageEngine] | type[SegmentEngine], base: str, modules: set[str]
) -> None:
    engine = kind(locate_base(base), EngineConfig(device="cpu"), fetch)
    try:
        engine.warm_up()
        assert set(engine.owner.forwards) == modules
        assert engine.info().running == 0
    finally:
        engine.close()
