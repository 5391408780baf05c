"""What every torch engine has: row pool, owner thread, residency, admission; a request's way through them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from hubctl.adapter.base_shapes import read_base_shapes
from hubctl.adapter.gate import gate_headers, refuse_misfit
from hubctl.adapter.layout import AdapterLayout
from hubctl.base_models import BaseModel
from hubctl.errors import AdapterError, InputError
from hubctl.families import Family
from hubctl.refs import PinnedRef
from serve.engine.admission import Admission
from serve.engine.config import EngineConfig
from serve.engine.host_rows import read_rows
from serve.engine.requests import Cancelled, EngineInfo, Fetch, LoraUse, Timings
from serve.engine.residency import Adapter, Loaded, Residency
from serve.engine.row_pool import RowPool
from serve.engine.shared_module import Client, Owner
from serve.engine.threads import one_core

MAX_SCALE = 100.0
ReadHeads = Callable[[AdapterLayout, Path], tuple[Mapping[str, nn.Module], Mapping[int, str] | None]]
"""The modules that an adapter replaces whole, and its labels."""


@dataclass(slots=True, eq=False)
class Session:
    """One request under way."""

    client: Client
    adapters: tuple[Adapter, ...]
    """In the request's order."""
    arrived_s: float
    read_s: float
    """Since when its adapters are in memory."""
    placed_s: float
    leased_s: float

    def timings(self) -> Timings:
        """Where the time went, up to now."""
        now_s = time.monotonic()
        return Timings(
            queue_s=self.placed_s - self.read_s,
            load_s=self.read_s - self.arrived_s + self.leased_s - self.placed_s,
            run_s=now_s - self.leased_s,
            total_s=now_s - self.arrived_s,
        )


class Core:
    """The shared parts of an engine over one base."""

    def __init__(
        self,
        base: BaseModel,
        config: EngineConfig,
        fetch: Fetch,
        components: Mapping[str, nn.Module],
        read_heads: ReadHeads | None = None,
        device: torch.device | None = None,
        vocabularies: Mapping[str, int] | None = None,
    ) -> None:
        """Prepare `components` (name → module) for adapters; they run on `device`, or where they are now.

        `vocabularies` says of text encoders that take new tokens how many their tokenizers know.
        """
        self.base, self.config = base, config
        self._fetch, self._read_heads = fetch, read_heads
        self._shapes = read_base_shapes(base.path, base.family)
        with one_core():
            self.pool = RowPool(components, config.total_rows, device, vocabularies)
        self.owner = Owner(
            self.pool.mixed, max_gather_s=config.max_gather_s, weights_share=config.weights_share
        )
        self.residency = Residency(
            self.pool, self._load, total_rows=config.total_rows, host_bytes=config.host_bytes
        )
        self.admission = Admission(max_running=config.max_running, max_queued=config.max_queued)

    @contextmanager
    def session(
        self,
        uses: Sequence[LoraUse],
        timeout_s: float | None,
        cancelled: Cancelled = None,
        *,
        tenant: str = "",
        cost: float = 1.0,
    ) -> Iterator[Session]:
        """A request's way: adapters to host memory, a place, rows, a client at the owner; all given back."""
        with one_core():
            arrived_s = time.monotonic()
            deadline_s = None if timeout_s is None else arrived_s + timeout_s
            check_uses(uses, self.config)
            # Before the wait for a place, so that files are read while other requests run.
            adapters = tuple(self.residency.prefetch(use.ref, deadline_s) for use in uses)
            read_s = time.monotonic()
            with self.admission.place(deadline_s, tenant=tenant, cost=cost):
                placed_s = time.monotonic()
                with (
                    self.residency.lease(uses, deadline_s) as pooled,
                    self.owner.client(pooled, deadline_s, cancelled) as client,
                ):
                    leased_s = time.monotonic()
                    yield Session(client, adapters, arrived_s, read_s, placed_s, leased_s)

    def info(self) -> EngineInfo:
        """The state now."""
        return EngineInfo(
            base_id=self.base.id,
            family=self.base.family.name,
            task=self.base.family.task,
            resident=self.residency.resident,
            rows_total=self.config.total_rows - 1,
            rows_free=self.residency.rows_free,
            queued=self.admission.queued,
            running=self.admission.running,
        )

    def close(self) -> None:
        """Refuse what waits and end the owner thread."""
        self.admission.close()
        self.owner.close()

    def _load(self, ref: PinnedRef) -> Loaded:
        try:
            return self._read(self._fetch(ref))
        except AdapterError as error:
            # A request may name several adapters: say which one it is.
            raise type(error)(f"adapter {ref.repo_id}: {error.message}", hint=error.hint) from error

    def _read(self, folder: Path) -> Loaded:
        layout = gate_headers(folder)
        refuse_misfit(layout, self.base.id, self._shapes)
        size, limit = layout.weights_file.stat().st_size, self.config.max_adapter_bytes
        if size > limit:
            raise AdapterError(f"it has {size:,} bytes (this server takes {limit:,})")
        rows = read_rows(layout, self.pool, limit)
        heads, labels = self._read_heads(layout, folder) if self._read_heads else ({}, None)
        layers = frozenset(slot.index for slot in rows.slots)
        adapter = Adapter(
            rank=rows.rank,
            rows=rows.rows,
            layers=layers,
            heads=heads,
            labels=labels,
            tokens=layout.tokens.names if layout.tokens else (),
        )
        return Loaded(adapter, rows)


def check_uses(uses: Sequence[LoraUse], config: EngineConfig) -> None:
    """Raise `InputError` for too many adapters or a scale that is no sensible number."""
    if len(uses) > config.max_loras:
        raise InputError(f"{len(uses)} adapters in one request (limit {config.max_loras})", param="loras")
    for use in uses:
        if not abs(use.scale) <= MAX_SCALE:  # also catches NaN
            raise InputError(
                f"scale {use.scale} of {use.ref.repo_id} is out of range",
                hint=f"give -{MAX_SCALE:g} to {MAX_SCALE:g}",
                param="loras",
            )


def pick_device(config: EngineConfig, family: Family) -> tuple[torch.device, torch.dtype]:
    """The device and dtype that the settings mean on this machine, for this kind of base."""
    auto = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(auto if config.device == "auto" else config.device)
    except RuntimeError as error:
        raise InputError(f"engine: no device '{config.device}'", hint="try auto, cpu or cuda:0") from error
    half = family.half if device.type == "cuda" else "float32"
    name = half if config.dtype == "auto" else config.dtype
    dtype: torch.dtype = getattr(torch, name)
    return device, dtype


def refuse_absent(device: torch.device) -> None:
    """Raise `InputError` for a device that this machine, or its torch, does not have."""
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # the latter where torch was built without it
        raise InputError(
            f"engine: there is no device '{device}' here", hint="give auto, or leave it out"
        ) from error
