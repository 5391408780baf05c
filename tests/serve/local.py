"""A server without Ray or a hub: real routes over real echo engines here, adapters in a dictionary."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from hubctl.base_models import BaseModel, locate_base
from hubctl.errors import NotFoundError
from hubctl.refs import AdapterRef, PinnedRef
from serve.config import BaseConfig, ServeConfig
from serve.engine.config import EngineConfig
from serve.engine.echo import EchoEngine
from serve.engine.requests import EngineInfo, ImageRequest, ImageResult, SegmentRequest, SegmentResult
from tests.adapters import write_base

HANGS_S = 60.0
"""At most: a test that fails is not to hang itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What a hub would say of an adapter."""

    pinned: PinnedRef
    base_model: str | None = "acme/tiny"
    task: str | None = "text-to-image"


def facts(repo_id: str, base_model: str | None = "acme/tiny", *, commit: str = "c" * 40) -> Facts:
    return Facts(pinned=PinnedRef(repo_id, "main", commit, "5" * 64), base_model=base_model)


@dataclass
class Shelf:
    """The hub side: `lookup` answers from `adapters`, counts its calls, and raises what it is told to.

    It hangs while `awake` is not set.
    """

    adapters: dict[str, Facts] = field(default_factory=dict)
    fault: Exception | None = None
    asked: list[AdapterRef] = field(default_factory=list)
    awake: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.awake.set()

    def put(self, *found: Facts) -> None:
        self.adapters |= {one.pinned.repo_id: one for one in found}

    def lookup(self, ref: AdapterRef) -> Facts:
        self.asked.append(ref)
        assert self.awake.wait(HANGS_S)
        if self.fault is not None:
            raise self.fault
        if ref.repo_id not in self.adapters:
            raise NotFoundError(f"the hub has no repository {ref}", hint="check the spelling")
        return self.adapters[ref.repo_id]


class LocalEngines:
    """The `EngineClient` over engines in this process; bases in `down` do not answer."""

    def __init__(self, engines: Mapping[str, EchoEngine]) -> None:
        self.engines = engines
        self.down: set[str] = set()
        self.fault: Exception | None = None
        self.last: ImageRequest | SegmentRequest | None = None

    async def generate(self, base: str, request: ImageRequest) -> ImageResult:
        self.last = request
        if self.fault is not None:
            raise self.fault
        return await asyncio.to_thread(self.engines[base].generate, request)

    async def segment(self, base: str, request: SegmentRequest) -> SegmentResult:
        self.last = request
        return await asyncio.to_thread(self.engines[base].segment, request)

    async def infos(self) -> dict[str, EngineInfo | None]:
        return {name: None if name in self.down else one.info() for name, one in self.engines.items()}


def write_seg_base(folder: Path) -> Path:
    """A SegFormer folder as far as its kind can be told."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"architectures": ["SegformerForSemanticSegmentation"]}))
    return folder


def open_local(folder: Path, **settings: int) -> tuple[ServeConfig, LocalEngines]:
    """Two bases, `tiny` (also known as acme/tiny) and `tiny-seg`, over echo engines with these settings."""
    echo = EngineConfig(kind="echo", **settings)  # type: ignore[arg-type]
    config = ServeConfig(
        bases=(
            BaseConfig(ref=str(write_base(folder / "tiny")), aliases=("acme/tiny",), engine=echo),
            BaseConfig(ref=str(write_seg_base(folder / "tiny-seg")), aliases=("acme/tiny-seg",), engine=echo),
        )
    )
    bases: dict[str, BaseModel] = {base.name: locate_base(base.ref) for base in config.bases}
    engines = {name: EchoEngine(base, echo, lambda pinned: folder) for name, base in bases.items()}
    return config, LocalEngines(engines)


@contextmanager
def over_http(app: ASGIApp) -> Iterator[str]:
    """The app on a free port of this machine; yields its URL."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        try:
            # Listening already: a connection waits in the socket's queue until the server takes it.
            listener.listen()
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(10)
