"""`measure_training(...)`: steps of hubctl, of a plain loop and of nothing but the step, in turns."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import hubctl
from hubctl.base_models import locate_base
from hubctl.bench.hub import machine
from hubctl.cpu import tune_cpu
from train.config import TrainConfig
from train.dataset import METADATA, read_captions
from train.prepare import open_training, plan_for

DRAWINGS = Path(hubctl.__file__).parent / "demo" / "data" / "openmoji-line"


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingReport:
    """Seconds of a step, each the median of the rounds, and what follows from them."""

    base: str
    machine: str
    device: str
    batch_size: int
    resolution_px: int
    rounds: int
    hubctl_s: float
    plain_s: float
    bare_s: float
    speedup: float
    """Median over the rounds of a plain step's time over ours."""
    overhead: float
    """Median over the rounds of what our step takes beyond the bare one, as a part of it."""
    first_step_s: float | None = None
    """From the command to its first step."""


def measure_training(
    base: str, *, batch_size: int, rounds: int, say: Callable[[str], None]
) -> TrainingReport:
    """Measure one base: an embedded name, a folder, or `sd15` for its shape with random weights."""
    with tempfile.TemporaryDirectory(prefix="hubctl-bench-") as scratch:
        return _measure(base, batch_size, rounds, Path(scratch), say)


def _measure(
    base: str, batch_size: int, rounds: int, scratch: Path, say: Callable[[str], None]
) -> TrainingReport:
    tune_cpu()
    from train.devices import quiet_libraries

    quiet_libraries()
    import torch

    from train.bench.loops import bare_loop, our_loop, plain_loop
    from train.bench.shapes import write_sd15
    from train.tasks.diffusion import open_pipeline
    from train.tasks.text_to_image import TextToImage

    say("loading")
    drawings = _some_drawings(scratch / "data", max(4, batch_size))
    named = str(write_sd15(scratch / "sd15")) if base == "sd15" else base
    config = TrainConfig(
        task="text-to-image", base=named, data=drawings, output=scratch / "out", rank=4, alpha=4,
        batch_size=batch_size, steps=rounds + 2, hold_out=0, sample_every=0, checkpoint_every=0,
        sample_prompts=("red apple",),
    )  # fmt: skip
    found = locate_base(named)
    plan = plan_for(config, found)
    data = read_captions(drawings)
    accelerator, task, state = open_training(config, plan, found, data)
    assert isinstance(task, TextToImage)
    encoders = open_pipeline(found, {"default": torch.float32}, accelerator.device)
    encoders.unet = None
    loops: dict[str, Iterator[None]] = {
        "bare": bare_loop(task, plan, accelerator),
        "hubctl": our_loop(task, config, plan, accelerator, state),
        "plain": plain_loop(task, data.train, encoders, plan, accelerator),
    }
    times: dict[str, list[float]] = {name: [] for name in loops}
    # Two rounds to warm up; then each step right beside the others, for a machine whose speed drifts.
    for number in range(rounds + 2):
        say(f"round {number + 1} of {rounds + 2}")
        for name, loop in loops.items():
            started_s = time.perf_counter()
            next(loop)
            if accelerator.device.type == "cuda":
                torch.cuda.synchronize()
            if number > 1:
                times[name].append(time.perf_counter() - started_s)
    return TrainingReport(
        base=base,
        machine=machine(),
        device=str(accelerator.device),
        batch_size=plan.batch_size,
        resolution_px=plan.resolution_px,
        rounds=rounds,
        hubctl_s=statistics.median(times["hubctl"]),
        plain_s=statistics.median(times["plain"]),
        bare_s=statistics.median(times["bare"]),
        speedup=_ratio(times, "plain", "hubctl"),
        overhead=_ratio(times, "hubctl", "bare") - 1,
        first_step_s=_first_step_s(scratch) if base == "emoji-64" else None,
    )


def _some_drawings(folder: Path, count: int) -> Path:
    """As many as a step needs: to encode all of them at 512 px takes a CPU minutes."""
    folder.mkdir()
    lines = (DRAWINGS / METADATA).read_text(encoding="utf-8").splitlines()[:count]
    (folder / METADATA).write_text("\n".join(lines), encoding="utf-8")
    for line in lines:
        name = json.loads(line)["file_name"]
        shutil.copyfile(DRAWINGS / name, folder / name)
    return folder


def _ratio(times: Mapping[str, list[float]], over: str, under: str) -> float:
    return statistics.median(a / b for a, b in zip(times[over], times[under], strict=True))


def _first_step_s(scratch: Path) -> float:
    """How long a new process takes to its first step, imports, loading and the base's samples included."""
    words = ["train", "text-to-image", "--base", "emoji-64", "--data", str(DRAWINGS),
             "--output", str(scratch / "first"), "--steps", "2", "--json"]  # fmt: skip
    started_s = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", hubctl.__name__, *words], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        for line in process.stdout:
            if json.loads(line)["event"] == "step_done":
                taken_s = time.perf_counter() - started_s
                process.kill()
                return taken_s
    raise RuntimeError("the training made no step")


def to_markdown(reports: list[TrainingReport]) -> str:
    """A table, a row for each base."""
    lines = [
        "| base | images a step | hubctl | plain loop | the step alone "
        "| plain over hubctl | hubctl beyond the step alone | first step |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for report in reports:
        first = f"{report.first_step_s:.1f} s" if report.first_step_s else "-"
        lines.append(
            f"| {report.base}, {report.resolution_px} px | {report.batch_size} | {report.hubctl_s:.3f} s "
            f"| {report.plain_s:.3f} s | {report.bare_s:.3f} s | {report.speedup:.2f} times "
            f"| {report.overhead:+.1%} | {first} |"
        )
    return "\n".join(lines) + "\n"
