"""The one door: open the engine that a base needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hubctl.base_models import BaseModel
from serve.engine.config import EngineConfig
from serve.engine.requests import Engine, Fetch

if TYPE_CHECKING:
    from serve.engine.generate import ImageEngine
    from serve.engine.segment import SegmentEngine


def open_engine(base: BaseModel, config: EngineConfig, fetch: Fetch) -> Engine:
    """Load `base` and be ready for requests.

    Args:
        base: What to serve.
        config: Limits, budgets, device.
        fetch: Gives the verified local folder of a pinned adapter; called from request threads.

    Raises:
        InputError: the device or the base's files cannot be used.
    """
    # Late imports: each kind of engine needs libraries that the others do not.
    if config.kind == "echo":
        from serve.engine.echo import EchoEngine

        return EchoEngine(base, config, fetch)
    from serve.engine.core import pick_device, refuse_absent

    device, _ = pick_device(config, base.family)
    refuse_absent(device)
    engine: ImageEngine | SegmentEngine
    if base.family.task == "text-to-image":
        from serve.engine.generate import ImageEngine

        engine = ImageEngine(base, config, fetch)
    else:
        from serve.engine.segment import SegmentEngine

        engine = SegmentEngine(base, config, fetch)
    # On a CPU there is nothing to choose, and one image can take minutes.
    if device.type == "cuda" or config.compile != "off":
        engine.warm_up()
    return engine
