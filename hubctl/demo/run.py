"""The demo from end to end: the one door, and the only place that knows the order of the stages."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

from hubctl import settings
from hubctl.cli.output import Output
from hubctl.demo import data, stages
from hubctl.demo.board import Board
from hubctl.demo.figures import confusion, hit_rate, judge_adapter, judge_base, label_bytes
from hubctl.demo.interrupts import Interrupts
from hubctl.demo.outcome import Outcome, SegmentResult, StyleResult
from hubctl.demo.processes import processes
from hubctl.demo.report import write_report
from hubctl.demo.requests import Cut
from hubctl.demo.stages import DemoConfig, Run
from hubctl.errors import ConflictError, InputError
from hubctl.loopback import LOOPBACK

MARKER = ".hubctl-demo"
"""Says that a folder is a demo's own, to be emptied by the next one."""
NEEDED = ("torch", "diffusers", "peft", "transformers", "accelerate", "ray", "fastapi", "lz4", "jinja2")
PRIVATE = {"HF_ENDPOINT", "HF_TOKEN", "HF_HUB_OFFLINE", "HUBCTL_TOKEN", "HUBCTL_CACHE", "HUBCTL_CACHE_QUOTA"}
"""Variables that would lead the demo's commands elsewhere than to its own registry."""


def run_demo(config: DemoConfig, output: Output) -> tuple[Outcome, Path]:
    """Train, push, serve, ask, judge and report; gives the outcome and the report's path.

    Nothing that was started is left running, however it ends.

    Raises:
        InputError: a library is missing.
        ConflictError: the folder holds something else.
        HubctlError: a stage failed, with the end of its log.
    """
    check_libraries()
    prepare(config.workdir)
    interrupts, board = Interrupts(), Board(output, stages.TITLES)
    with (
        interrupts.caught(),
        board.shown(),
        processes(
            config.workdir / "logs",
            environment=environment(config.workdir),
            cwd=config.workdir,
            interrupts=interrupts,
        ) as started,
    ):
        return _run(Run(config=config, board=board, processes=started))


def _run(run: Run) -> tuple[Outcome, Path]:
    config, board = run.config, run.board
    registry = stages.open_registry(run)
    stages.seed_bases(run)
    trainings = stages.train_adapters(run)
    pushed = stages.push_adapters(run, trainings)
    style_id, animals_id = (adapter.id for adapter in pushed)
    command, server = stages.open_server(run)
    together, together_cuts = stages.ask_together(run, command, server, style_id, animals_id)
    things, base_shots, adapter_shots = stages.draw_held_out(run, command, server, style_id)
    photos, base_cuts, adapter_cuts = stages.segment_held_out(run, command, server, animals_id)
    stages.stop(run, command, registry.command)
    styles, judge_accuracy = stages.judge_styles(run)
    segment = judge_segments(photos, base_cuts, adapter_cuts)
    outcome = Outcome(
        config=config,
        seconds=board.seconds,
        started=board.started,
        total_s=board.elapsed_s(),
        trainings=trainings,
        pushed=pushed,
        together=together,
        together_cuts=together_cuts,
        style=StyleResult(
            things=things,
            base=base_shots,
            adapter=adapter_shots,
            base_styles=[styles[shot.ask.path] for shot in base_shots],
            adapter_styles=[styles[shot.ask.path] for shot in adapter_shots],
            wanted=stages.JUDGED_STYLE,
            judge_accuracy=judge_accuracy,
            base_rate=hit_rate([styles[shot.ask.path] for shot in base_shots], stages.JUDGED_STYLE),
            adapter_rate=hit_rate([styles[shot.ask.path] for shot in adapter_shots], stages.JUDGED_STYLE),
        ),
        segment=segment,
        typed=run.processes.typed,
    )
    report = config.workdir / "report.html"
    with board.stage("report") as bar:
        write_report(outcome, report)
        bar.update(note=str(report))
    return outcome, report


def judge_segments(photos: list[data.Masked], base: list[Cut], adapter: list[Cut]) -> SegmentResult:
    """The figures of base and adapter over all served labels."""
    labels = data.read_labels(data.ANIMALS)
    masks = [label_bytes(photo.mask) for photo in photos]
    found = [[label_bytes(cut.labels) for cut in cuts] for cuts in (base, adapter)]
    base_classes = 1 + max(map(max, found[0]))
    base_matrix, adapter_matrix = (
        confusion(zip(masks, predicted, strict=True), true_classes=len(labels), predicted_classes=classes)
        for predicted, classes in zip(found, (base_classes, len(labels)), strict=True)
    )
    return SegmentResult(
        photos=photos,
        base=base,
        adapter=adapter,
        labels=labels,
        base_figures=judge_base(base_matrix),
        adapter_figures=judge_adapter(adapter_matrix),
    )


def check_libraries() -> None:
    """Say what is missing before minutes have passed.

    Raises:
        InputError: something is.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"the demo needs {', '.join(missing)}, which is not installed", hint="pip install 'hubctl[all]'"
        )


def prepare(workdir: Path) -> None:
    """Make `workdir`, or empty it when it is an earlier demo's.

    Raises:
        ConflictError: it holds something else, or is no folder.
    """
    if workdir.exists() and not workdir.is_dir():
        raise ConflictError(f"{workdir} is not a folder", hint="choose another: hubctl demo --workdir DIR")
    if workdir.is_dir() and any(workdir.iterdir()):
        if not (workdir / MARKER).is_file():
            raise ConflictError(
                f"{workdir} holds something that is not a demo's",
                hint="choose another: hubctl demo --workdir DIR",
            )
        shutil.rmtree(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / MARKER).write_text("Made by `hubctl demo`, which empties this folder when it runs again.\n")


def environment(workdir: Path) -> dict[str, str]:
    """The demo's commands see their own home and registry, and nothing of the user's."""
    home = workdir / "home"
    ours = settings.child_environment(
        HUBCTL_HOME=str(home),
        HF_HOME=str(home / "huggingface"),
        HF_HUB_DISABLE_TELEMETRY="1",
        NO_PROXY=",".join(LOOPBACK),
        no_proxy=",".join(LOOPBACK),
    )
    return {name: value for name, value in ours.items() if name not in PRIVATE}
