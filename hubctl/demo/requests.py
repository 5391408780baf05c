"""What the demo asks of the server: many requests at once, each answer kept with its picture."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from hubctl.client import Server, image_bytes
from hubctl.demo.processes import Command
from hubctl.errors import HubctlError

T = TypeVar("T")

POLL_S = 0.2


@dataclass(frozen=True, kw_only=True, slots=True)
class Ask:
    """One image to ask for."""

    prompt: str
    model: str
    """A base's name, or an adapter's id."""
    loras: tuple[tuple[str, float], ...] = ()
    """Adapters with their scales, beside `model`."""
    steps: int
    guidance: float
    seed: int
    path: Path
    """Where the picture goes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shot:
    """An image that was asked for and came."""

    ask: Ask
    took_s: float
    provenance: dict[str, Any]
    """The answer's `hubctl` part: which bytes made it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cut:
    """A segmentation that was asked for and came."""

    image: Path
    model: str
    labels: Path
    """PNG, one byte a pixel: the class's number."""
    took_s: float
    names: dict[int, str] = field(default_factory=dict)
    """The classes found, by number."""


def draw(server: Server, ask: Ask) -> Shot:
    """Ask for one image and keep it."""
    started = time.monotonic()
    answer = server.generate(
        {
            "model": ask.model,
            "prompt": ask.prompt,
            "num_inference_steps": ask.steps,
            "guidance_scale": ask.guidance,
            "seed": ask.seed,
            "loras": [{"id": name, "scale": scale} for name, scale in ask.loras] or None,
        }
    )
    ask.path.parent.mkdir(parents=True, exist_ok=True)
    ask.path.write_bytes(image_bytes(answer["data"][0]["b64_json"], server))
    return Shot(ask=ask, took_s=time.monotonic() - started, provenance=answer["hubctl"])


def cut(server: Server, image: Path, model: str, labels: Path) -> Cut:
    """Ask for the class of each pixel of `image` and keep it as `labels`."""
    started = time.monotonic()
    answer = server.segment(image, {"model": model, "output": "labels"})
    labels.parent.mkdir(parents=True, exist_ok=True)
    labels.write_bytes(image_bytes(answer["image"], server))
    names = {item["id"]: item["label"] for item in answer["data"]}
    return Cut(image=image, model=model, labels=labels, took_s=time.monotonic() - started, names=names)


def at_once(
    jobs: Sequence[Callable[[], T]], *, server: Command, most: int, done: Callable[[int], None]
) -> list[T]:
    """Run all jobs, `most` at a time, and give their answers in order; `done` hears how many there are.

    Raises:
        HubctlError: one of them failed, or the server ended.
    """
    pool = ThreadPoolExecutor(most, thread_name_prefix="demo")
    try:
        futures = [pool.submit(job) for job in jobs]
        left = set(futures)
        while left:
            ended, left = wait(left, POLL_S, FIRST_COMPLETED)
            try:
                for future in ended:
                    future.result()
            except HubctlError:
                server.running()  # when it has died, that is the better explanation
                raise
            server.running()
            done(len(futures) - len(left))
        return [future.result() for future in futures]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
