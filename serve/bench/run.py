"""The one door of the benchmark: every contender, every mix, one process, one set of base weights."""

from __future__ import annotations

import importlib.metadata
import itertools
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import diffusers
import torch
import transformers

from hubctl.base_models import locate_base
from hubctl.errors import InputError
from serve.bench.adapters import write_adapters
from serve.bench.clock import ForwardClock, processor_name
from serve.bench.contenders import APART, BARE, BASE, MIXED, SWITCHED, Bench, ImageBench, SegmentBench
from serve.bench.measure import Contender, Job, Load, drive, median_load, poisson_arrivals
from serve.bench.residents import Cost, diffusers_costs, pool_costs
from serve.bench.shapes import SHAPES, Shape, write_base
from serve.engine.config import Compile, EngineConfig
from serve.engine.threads import one_core

POISSON_SHARE = 0.7
"""Arrival rate of the Poisson load, as a share of what hubctl's mixed batches get through."""
FEW = 10
"""diffusers' own calls take seconds each with more residents than this."""
POISSON_ROUNDS = 4
"""Jobs of the Poisson load, in multiples of the all-at-once load."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What to measure."""

    shape: str
    adapters: tuple[int, ...] = (1, 2, 4, 8)
    """Different adapters in one load."""
    jobs: int = 8
    """Clients, and so requests at once."""
    rank: int = 16
    turns: int = 4
    """Requests that each client sends in a round, one after the other."""
    rounds: int = 3
    """How often everything is measured; what counts is the median."""
    steps: int | None = None
    """Denoising steps; by default the shape's own."""
    side_px: int | None = None
    residents: tuple[int, ...] = (1, 10, 100, 1000)
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    compile: Compile = "off"
    """For hubctl and the base alone; the other ways run as people find them."""

    def __post_init__(self) -> None:
        """Refuse loads that could not hold as many different adapters as they say."""
        if max(self.adapters) > self.jobs:
            raise InputError(
                f"{self.jobs} requests at once cannot use {max(self.adapters)} different adapters",
                hint=f"give --jobs {max(self.adapters)}, or fewer --adapters",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One contender under one load."""

    contender: str
    adapters: int
    """Different adapters among the jobs."""
    arrival: str
    """`at once` (every client sends its next request when it has the last answer) or `poisson`."""
    load: Load
    ratio: float | None
    """Throughput over the base's own, with as many requests in one batch; None for Poisson arrivals."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """All that one benchmark found."""

    settings: Settings
    machine: str
    versions: dict[str, str]
    rows: tuple[Row, ...]
    glue: float
    """Share of the wall time of mixed requests in which no forward of the denoiser ran."""
    gpu_bytes: int | None
    """Most device memory in use; None on a CPU."""
    pool: tuple[Cost, ...]
    diffusers: tuple[Cost, ...]

    def ratio(self, contender: str, adapters: int) -> float | None:
        """`Row.ratio` of a contender when all jobs are there at once; None where that was not measured."""
        rows = (row for row in self.rows if (row.contender, row.adapters) == (contender, adapters))
        return next((row.ratio for row in rows if row.ratio is not None), None)


Tell = Callable[[str, int, int], None]
"""Told what is measured next, how many measurements are done, and of how many."""


def measure_engine(settings: Settings, tell: Tell) -> Report:
    """Measure every contender over the base of `settings.shape`.

    Raises:
        InputError: there is no such shape.
    """
    _quiet_libraries()
    with tempfile.TemporaryDirectory(prefix="hubctl-bench-") as scratch, torch.no_grad():
        return _measure(settings, Path(scratch), tell)


def _measure(settings: Settings, scratch: Path, tell: Tell) -> Report:
    shape = _shape(settings)
    with one_core():
        base = locate_base(str(write_base(scratch / "base", shape)))
    config = _config(settings, shape)
    bench: Bench = (ImageBench if shape.pipeline else SegmentBench)(base, shape, config)
    try:
        with one_core():
            bench.folders = write_adapters(
                scratch / "adapters",
                bench.denoiser,
                base.family,
                count=max(settings.adapters),
                rank=settings.rank,
                dtype=next(bench.denoiser.parameters()).dtype,
            )
            contenders = bench.contenders()
            rows = _loads(bench, contenders, settings, tell)
            glue = _glue(bench, contenders, settings)
            on_gpu = next(bench.denoiser.parameters()).is_cuda
            tell("loading and switching", len(rows), len(rows))
            denoiser, pipeline = bench.twin()
            pool = pool_costs(denoiser, base, bench.folders[0], settings.residents, rank=settings.rank)
            few = [count for count in settings.residents if count <= FEW]
            peer = diffusers_costs(bench.twin()[1], bench.folders[0], few) if pipeline and few else []
    finally:
        bench.close()
    return Report(
        settings=settings,
        machine=_machine(on_gpu),
        versions={name: importlib.metadata.version(name) for name in ("torch", "diffusers", "peft")},
        rows=tuple(rows),
        glue=glue,
        # Not the peak of what was allocated: the engine resets that counter with every forward.
        gpu_bytes=torch.cuda.memory_reserved() if on_gpu else None,
        pool=tuple(pool),
        diffusers=tuple(peer),
    )


def _quiet_libraries() -> None:
    """Diffusers remarks on every one of thousands of adapter loads."""
    for library in (transformers, diffusers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", "Already found a `peft_config`")


def _shape(settings: Settings) -> Shape:
    if settings.shape not in SHAPES:
        raise InputError(f"no shape '{settings.shape}'", hint=f"choose one of: {', '.join(SHAPES)}")
    shape = SHAPES[settings.shape]
    return replace(shape, steps=settings.steps or shape.steps, side_px=settings.side_px or shape.side_px)


def _config(settings: Settings, shape: Shape) -> EngineConfig:
    return EngineConfig(
        device=settings.device,
        dtype=settings.dtype,
        compile=settings.compile,
        total_rows=max(settings.adapters) * settings.rank + 1,
        max_batch_rows=settings.jobs * shape.rows_an_image,
        max_running=max(16, 2 * settings.jobs),
    )


def _loads(bench: Bench, contenders: Sequence[Contender], settings: Settings, tell: Tell) -> list[Row]:
    poisson = [c for c in contenders if c.name in (MIXED, APART, SWITCHED)]
    rows = _at_once(bench, contenders, settings, tell, more=len(poisson))
    most = max(settings.adapters)
    count = POISSON_ROUNDS * settings.jobs
    full = next(row.load for row in rows if (row.contender, row.adapters) == (MIXED, most))
    arrivals_s = poisson_arrivals(count, POISSON_SHARE * full.images_per_s, random.Random(0))
    total = settings.rounds * len(rows) + len(poisson)
    for done, contender in enumerate(poisson, total - len(poisson)):
        tell(f"{contender.name}, poisson", done, total)
        with _policy(bench, contender):
            load = drive(contender, _jobs(settings, most, count), arrivals_s)
        rows.append(Row(contender=contender.name, adapters=most, arrival="poisson", load=load, ratio=None))
    return rows


def _at_once(
    bench: Bench, contenders: Sequence[Contender], settings: Settings, tell: Tell, *, more: int
) -> list[Row]:
    """Every contender with every number of adapters, all jobs at once, each right after the base alone.

    In rounds, and by medians: a machine's speed drifts by more than what is to be told apart.
    """
    (base,) = (c for c in contenders if c.name == BASE)
    loads = [
        (c, n) for c in contenders if c is not base for n in ((0,) if c.name == BARE else settings.adapters)
    ]
    total = settings.rounds * (len(loads) + 1) + more
    bases: list[Load] = []
    found: list[list[tuple[Load, float]]] = [[] for _ in loads]
    done = itertools.count()
    for turn in range(settings.rounds):
        for (contender, adapters), pairs in zip(loads, found, strict=True):
            what, number = f"{contender.name}, {adapters or 'no'} adapters", next(done)
            tell(what, number, total)
            jobs = _jobs(settings, adapters, settings.jobs)
            with _policy(bench, contender):
                if turn == 0:
                    drive(contender, jobs)  # what only the first time costs
                beside = drive(base, jobs, turns=settings.turns)
                load = drive(contender, jobs, turns=settings.turns)
            bases.append(beside)
            pairs.append((load, load.images_per_s / beside.images_per_s))
            # Who ends a long benchmark early keeps these.
            tell(
                f"{what}: {load.images_per_s:.3g} images/s, {pairs[-1][1]:.2f} of the base", number + 1, total
            )
    rows = [Row(contender=BASE, adapters=0, arrival="at once", load=median_load(bases), ratio=1.0)]
    for (contender, adapters), pairs in zip(loads, found, strict=True):
        load, ratio = median_load([load for load, _ in pairs]), statistics.median(r for _, r in pairs)
        rows.append(
            Row(contender=contender.name, adapters=adapters, arrival="at once", load=load, ratio=ratio)
        )
    return rows


def _jobs(settings: Settings, adapters: int, count: int) -> list[Job]:
    """As many different adapters as there are, in turn; 0 is the base alone."""
    return [Job(adapter=i % adapters if adapters else None, seed=i) for i in range(count)]


def _policy(bench: Bench, contender: Contender) -> AbstractContextManager[None]:
    return bench.apart() if contender.name == APART else nullcontext()


def _glue(bench: Bench, contenders: Sequence[Contender], settings: Settings) -> float:
    """Share of wall time without a forward of the denoiser, with all jobs mixed at once."""
    mixed = next(c for c in contenders if c.name == MIXED)
    with ForwardClock(bench.denoiser) as clock:
        started_s = time.perf_counter()
        drive(mixed, _jobs(settings, max(settings.adapters), settings.jobs), turns=settings.turns)
        return max(0.0, 1 - clock.busy_s() / (time.perf_counter() - started_s))


def _machine(on_gpu: bool) -> str:
    if on_gpu:
        return torch.cuda.get_device_name()
    return f"{processor_name()}, {torch.get_num_threads()} threads"
