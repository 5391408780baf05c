"""Everything of a training that changes from step to step: captured, restored, and written as one file.

The file is read with torch's `weights_only`, which takes tensors and plain values and runs no code.
"""

from __future__ import annotations

import json
import os
import pickle
import struct
import time
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils._pytree import tree_map

from hubctl.errors import IntegrityError
from train.plan import Plan, ema_keeps, rank_seed
from train.ranks import Ranks


@dataclass(kw_only=True, slots=True)
class Progress:
    """How far a training is, in plain values."""

    step: int = 0
    """Optimizer steps done, skipped ones included."""
    micro_batch: int
    """Images in memory at once; halved when they do not fit."""
    rate_factor: float = 1.0
    """Halved with each rollback."""
    rollbacks: int = 0
    losses: list[float] = field(default_factory=list)
    looks: list[tuple[int, float, float]] = field(default_factory=list)
    """Step, loss on training images, loss on held-out images."""
    elapsed_s: float = 0.0


class State:
    """Adapter, optimizer, random states and progress of one training."""

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        accelerator: Accelerator,
        plan: Plan,
        seed: int,
        ema: float | None = None,
    ) -> None:
        # Not to be wrapped for several processes: `Ranks.average_gradients` says why.
        self.module: nn.Module = accelerator.prepare_model(module, evaluation_mode=True)
        self.optimizer: Any = accelerator.prepare(optimizer)
        rank = accelerator.process_index
        self.generator = torch.Generator().manual_seed(rank_seed(seed, rank))
        if rank:
            torch.manual_seed(rank_seed(seed, rank))  # of dropout inside the base
        self.progress = Progress(micro_batch=plan.batch_size)
        self.best: dict[str, torch.Tensor] | None = None
        self._trained, self._scaler = module, accelerator.scaler
        self._ema = ema
        self._mean = tree_map(_copied, self._parameters()) if ema else None

    def capture(self) -> dict[str, Any]:
        """A copy, on the CPU, from which `restore` comes back to this moment exactly."""
        state = {
            "tensors": self._tensors(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self._scaler.state_dict() if self._scaler else None,
            **self._randoms(),
            "progress": asdict(self.progress),
        }
        # The best state is a copy already, which nothing changes.
        copied: dict[str, Any] = tree_map(_copied, state | {"mean": self._mean}) | {"best": self.best}
        return copied

    def capture_all(self, ranks: Ranks) -> dict[str, Any]:
        """The same of all processes: what others have of their own is their random states alone."""
        return self.capture() | {"others": ranks.gather(self._randoms())[1:]}

    def restore_all(self, captured: dict[str, Any], ranks: Ranks) -> None:
        """Come back, in each process, to what `capture_all` captured."""
        self.restore(captured if ranks.first else captured | captured["others"][ranks.rank - 1])

    def share(self, ranks: Ranks) -> None:
        """Begin with the first process's values: other machines may draw them otherwise in the last bit."""
        if ranks.count > 1:
            self._put(ranks.from_first(tree_map(_copied, self._tensors())))

    def restore(self, captured: dict[str, Any]) -> None:
        """Come back to the captured moment; the copy stays usable."""
        self._put(captured["tensors"])
        # A copy: the optimizer keeps the tensors that it is given, and would change them.
        self.optimizer.load_state_dict(tree_map(_copied, captured["optimizer"]))
        if self._scaler:
            self._scaler.load_state_dict(captured["scaler"])
        self.generator.set_state(captured["generator"])
        torch.set_rng_state(captured["torch"])
        torch.cuda.set_rng_state_all(captured["cuda"])
        self.progress = Progress(**tree_map(_copied, captured["progress"]))
        self.best = captured["best"]
        self._mean = tree_map(_copied, captured["mean"])

    @torch.no_grad()
    def follow(self) -> None:
        """After a step: move the running mean, where there is one, towards the trained values."""
        if self._ema is None or self._mean is None:
            return
        part = 1 - ema_keeps(self.progress.step, self._ema)
        for name, value in self._parameters().items():
            self._mean[name].lerp_(value.detach().to("cpu"), part)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """With the running mean, where there is one, in place of the trained values."""
        if self._mean is None:
            yield
            return
        trained = tree_map(_copied, self._parameters())
        self._put(self._mean)
        try:
            yield
        finally:
            self._put(trained)

    def take_mean(self) -> None:
        """Put the running mean, where there is one, in place of the trained values, for good."""
        self._put(self._mean or {})

    def keep_best(self) -> None:
        """Remember the trained values as they are now."""
        self.best = tree_map(_copied, self._tensors())

    def take_best(self) -> None:
        """Go back to the remembered values, where there are any."""
        self._put(self.best or {})

    def is_finite(self) -> bool:
        """Whether every trained value is a number."""
        return all(bool(torch.isfinite(p).all()) for p in self._trained.parameters() if p.requires_grad)

    def _randoms(self) -> dict[str, Any]:
        return {
            "generator": self.generator.get_state(),
            # Dropout inside the base draws from torch's own.
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all(),
        }

    def _tensors(self) -> dict[str, torch.Tensor]:
        """What trains, and what layers count along the way (BatchNorm's means)."""
        return self._parameters() | dict(self._trained.named_buffers())

    def _parameters(self) -> dict[str, torch.Tensor]:
        return {name: p for name, p in self._trained.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def _put(self, values: dict[str, torch.Tensor]) -> None:
        own = self._tensors()
        for name, value in values.items():
            own[name].copy_(value)


def write_state(path: Path, captured: dict[str, Any], identity: dict[str, Any]) -> None:
    """Write a captured state so that it is whole or the former one stays."""
    part = path.with_suffix(".part")
    try:
        with part.open("wb") as stream:
            torch.save({"identity": json.dumps(identity, sort_keys=True), "state": captured}, stream)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def read_state(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The captured state in a file, and the identity it was written with.

    Raises:
        IntegrityError: the file is not a whole checkpoint.
    """
    try:
        # torch itself reads over bits that have changed.
        with zipfile.ZipFile(path) as archive:
            if spoilt := archive.testzip():
                raise ValueError(f"{spoilt} has changed")
        saved = torch.load(path, map_location="cpu", weights_only=True)
        state, identity = saved["state"], json.loads(saved["identity"])
        if not (state.keys() >= _CAPTURED and identity.keys() >= _IDENTITY):
            raise ValueError("it holds something else")
        return state, identity
    except _UNREADABLE as error:
        raise IntegrityError(
            f"{path} is not a whole checkpoint: {error}", hint="start over: add --restart"
        ) from error


_CAPTURED = {"tensors", "optimizer", "scaler", "generator", "torch", "cuda", "progress", "mean", "best"}
_IDENTITY = {"settings", "data", "base", "versions"}
_UNREADABLE = (
    RuntimeError, OSError, LookupError, EOFError, ValueError, TypeError, AttributeError,
    pickle.UnpicklingError, zipfile.BadZipFile, zlib.error, struct.error,
)  # fmt: skip
"""What zipfile, pickle and torch say to bytes that are no checkpoint."""


class Clock:
    """Seconds of training, over all its sessions."""

    def __init__(self, elapsed_s: float) -> None:
        self._started_s = time.perf_counter() - elapsed_s

    def elapsed_s(self) -> float:
        """Seconds so far."""
        return time.perf_counter() - self._started_s


def _copied(value: Any) -> Any:
    return value.detach().to("cpu", copy=True) if isinstance(value, torch.Tensor) else value
