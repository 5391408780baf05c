"""The stages of the demo, each a few commands of hubctl that a person could have typed."""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from hubctl.base_models import embedded_bases
from hubctl.client import Server
from hubctl.demo import data
from hubctl.demo.board import Bar, Board
from hubctl.demo.processes import POLL_S, Command, Processes, while_running
from hubctl.demo.requests import Ask, Cut, Shot, at_once, cut, draw

IMAGE_BASE, MASK_BASE = "emoji-64", "emoji-64-seg"
BASE_OWNER, USER, REMOTE = "hubctl", "demo", "demo"
STYLE, ANIMALS = "openmoji-line", "animal-trimap"
"""The adapters' names: of their folders, and of their repositories."""
JUDGED_STYLE = "openmoji-line"
"""What the judge calls the style that the adapter learns."""
STYLE_TARGETS = ("--targets", "attention-conv")
TITLES = {
    "registry": "Registry up, user logged in",
    "bases": "Bases into the registry",
    "train": "Training both adapters",
    "push": "Adapters into the registry",
    "serve": "Server up",
    "requests": "Different requests at once",
    "draw": "Drawing the held-out captions",
    "segment": "Segmenting the held-out pictures",
    "stop": "Everything stopped",
    "judge": "Judging the style",
    "report": "Report",
}
REGISTRY_TIMEOUT_S = 60.0
SERVER_TIMEOUT_S = 300.0
GENERATIONS_AT_ONCE = 16
SEGMENTATIONS_AT_ONCE = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoConfig:
    """How much the demo does."""

    workdir: Path
    style_steps: int = 400
    segmentation_steps: int = 500
    """The two take about equally long on one core each, so that neither waits for the other."""
    held_out: int = 40
    """Captions that are drawn by base and adapter for the judge."""
    photos: int = 1000
    """Held-out pictures to segment; all there are, when fewer."""
    inference_steps: int = 25
    samples: bool = True
    """Draw samples while the style is trained."""
    guidance: float = 2.0
    timeout_s: float = 1200.0
    """The longest that one training may take."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What every stage needs."""

    config: DemoConfig
    board: Board
    processes: Processes


@dataclass(frozen=True, kw_only=True, slots=True)
class Registry:
    """The demo's own Hub."""

    command: Command
    url: str


@dataclass(kw_only=True, slots=True)
class Training:
    """What one training said while it ran."""

    title: str
    folder: Path
    steps: int
    facts: dict[str, Any] = field(default_factory=dict)
    """Its `started` event."""
    losses: list[float] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    def hear(self, event: dict[str, Any]) -> None:
        """Take in one event of `hubctl train --json`."""
        match event["event"]:
            case "started":
                self.facts = event
                self.steps = event["steps"]
            case "step_done":
                self.losses.append(event["loss"])
            case "evaluated":
                self.metrics = event["metrics"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Pushed:
    """An adapter on the registry."""

    id: str
    commit: str
    url: str


def open_registry(run: Run) -> Registry:
    """Start the registry on a free port, make its users, and log in as one of them."""
    root = run.config.workdir / "registry"
    with run.board.stage("registry") as bar:
        words = ("-q", "registry", "serve", "--root", root, "--port", "0")
        command = run.processes.start("registry", *words)
        url = first_line(command, REGISTRY_TIMEOUT_S)
        token = _new_token(run, USER)
        run.processes.call("remote", "remote", "add", REMOTE, url, "--use", "--token-stdin", stdin=token)
        bar.update(note=url)
    return Registry(command=command, url=url)


def _new_token(run: Run, user: str) -> str:
    root = run.config.workdir / "registry"
    words = ("-q", "registry", "token", "create", "--root", root, "--user", user)
    return run.processes.call(f"token {user}", *words)


def seed_bases(run: Run) -> None:
    """Push the embedded bases, so that the registry holds what the adapters' cards name."""
    bases = embedded_bases()
    with run.board.stage("bases", total=2) as bar:
        token = _new_token(run, BASE_OWNER).strip()
        for done, name in enumerate((IMAGE_BASE, MASK_BASE)):
            bar.update(done, note=f"{BASE_OWNER}/{name}")
            words = ("push", bases[name], "--kind", "base", "--repo", f"{BASE_OWNER}/{name}")
            run.processes.call(f"push {name}", *words, HUBCTL_TOKEN=token)
        bar.update(2)


def train_adapters(run: Run) -> tuple[Training, Training]:
    """Train the style and the segmentation adapter, at the same time."""
    config = run.config
    adapters = config.workdir / "adapters"
    style = Training(title="style", folder=adapters / STYLE, steps=config.style_steps)
    animals = Training(title="segmentation", folder=adapters / ANIMALS, steps=config.segmentation_steps)
    # Two processes with half the cores each are done sooner than one after the other with all of them: these
    # models are too small to keep many cores busy, and each waits for its imports, files and pictures.
    threads = str(max(1, (os.cpu_count() or 2) // 2))
    samples = () if config.samples else ("--sample-every", "0")
    jobs = (
        # Lines are finer than where the attention is: without the convolutions they stay smudges.
        (style, ("text-to-image", "--base", IMAGE_BASE, "--data", data.DRAWINGS, *STYLE_TARGETS, *samples)),
        (animals, ("segmentation", "--base", MASK_BASE, "--data", data.ANIMALS)),
    )
    with run.board.stage("train", total=style.steps + animals.steps) as bar:
        started = time.monotonic()
        commands = []
        for training, words in jobs:
            output = ("--output", training.folder, "--steps", str(training.steps), "--json")
            name = f"train {training.title}"
            commands.append(run.processes.start(name, "train", *words, *output, OMP_NUM_THREADS=threads))
        for _ in while_running(commands):
            seconds = time.monotonic() - started
            for (training, _words), command in zip(jobs, commands, strict=True):
                for line in command.new_lines():
                    if line.startswith("{"):  # a library may print there too
                        training.hear(json.loads(line))
                if command.process.poll() is None:
                    training.seconds = seconds
            slow = [command for command in commands if command.process.poll() is None]
            if slow and seconds > config.timeout_s:
                raise slow[0].failure(f"took more than {config.timeout_s:.0f} s")
            _show_losses(bar, (style, animals))
    return style, animals


def _show_losses(bar: Bar, trainings: Sequence[Training]) -> None:
    parts = []
    for training in trainings:
        if training.losses:
            recent = training.losses[-20:]
            parts.append(f"{training.title} loss {sum(recent) / len(recent):.3f}")
    bar.update(sum(len(training.losses) for training in trainings), note=", ".join(parts))


def push_adapters(run: Run, trainings: Sequence[Training]) -> list[Pushed]:
    """Push each adapter under the user's own name."""
    pushed = []
    with run.board.stage("push", total=len(trainings)) as bar:
        for done, training in enumerate(trainings):
            bar.update(done, note=training.folder.name)
            name = f"push {training.title}"
            answer = json.loads(run.processes.call(name, "--json", "push", training.folder))
            pushed.append(Pushed(id=answer["repo"], commit=answer["commit"], url=answer["url"]))
        bar.update(len(trainings), note=", ".join(adapter.id for adapter in pushed))
    return pushed


def open_server(run: Run) -> tuple[Command, Server]:
    """Start the server with both bases and wait until it is ready."""
    with run.board.stage("serve") as bar:
        bases = ("--base", IMAGE_BASE, "--base", MASK_BASE)
        command = run.processes.start("server", "-q", "serve", *bases, "--port", "0")
        bar.update(note="Ray and two engines start")
        url = first_line(command, SERVER_TIMEOUT_S)
        wait_ready(command, url, SERVER_TIMEOUT_S)
        bar.update(note=url)
    return command, Server(url)


def ask_together(
    run: Run, command: Command, server: Server, style: str, animals: str
) -> tuple[list[Shot], list[Cut]]:
    """Eight different generations and four segmentations, all under way at the same time."""
    folder = run.config.workdir / "images" / "together"
    things = (("red apple", 20, 2.0, 1), ("dog face", 30, 3.0, 2), ("house", 25, 1.5, 3))
    models = ((IMAGE_BASE, ()), (IMAGE_BASE, ((style, 0.5),)), (style, ()))
    asks = [
        Ask(
            prompt=f"{thing}, {data.STYLE_WORDS}",
            model=model,
            loras=loras,
            steps=steps + extra,  # no two alike: each request goes its own way through the schedule
            guidance=guidance,
            seed=seed,
            path=folder / f"{thing.replace(' ', '-')}-{('base', 'half', 'adapter')[extra]}.png",
        )
        for thing, steps, guidance, seed in things
        for extra, (model, loras) in enumerate(models)
        if (thing, extra) != ("house", 1)
    ]
    photos = [item.image for item in data.read_masked(data.ANIMALS / "test")[:2]]
    cuts = [
        partial(cut, server, photo, model, folder / f"{photo.stem}-{name}.png")
        for photo in photos
        for model, name in ((MASK_BASE, "base"), (animals, "adapter"))
    ]
    jobs: list[Any] = [*(partial(draw, server, ask) for ask in asks), *cuts]
    with run.board.stage("requests", total=len(jobs)) as bar:
        answers = at_once(jobs, server=command, most=len(jobs), done=bar.update)
    return answers[: len(asks)], answers[len(asks) :]


def draw_held_out(
    run: Run, command: Command, server: Server, style: str
) -> tuple[list[data.HeldOut], list[Shot], list[Shot]]:
    """Every held-out caption, drawn by the base and by the adapter from the same seed."""
    config = run.config
    things = data.read_held_out(data.DRAWINGS)[: config.held_out]
    asks = [
        Ask(
            prompt=thing.prompt,
            model=model,
            steps=config.inference_steps,
            guidance=config.guidance,
            seed=1000 + number,
            path=config.workdir / "images" / name / f"{thing.name.replace(' ', '-')}.png",
        )
        for model, name in ((IMAGE_BASE, "base"), (style, "adapter"))
        for number, thing in enumerate(things)
    ]
    with run.board.stage("draw", total=len(asks)) as bar:
        jobs = [partial(draw, server, ask) for ask in asks]
        shots = at_once(jobs, server=command, most=GENERATIONS_AT_ONCE, done=bar.update)
    return things, shots[: len(things)], shots[len(things) :]


def segment_held_out(
    run: Run, command: Command, server: Server, animals: str
) -> tuple[list[data.Masked], list[Cut], list[Cut]]:
    """Every held-out picture, segmented by the base and by the adapter."""
    photos = data.read_masked(data.ANIMALS / "test")[: run.config.photos]
    folder = run.config.workdir / "images" / "labels"
    jobs = [
        partial(cut, server, photo.image, model, folder / name / f"{photo.image.stem}.png")
        for model, name in ((MASK_BASE, "base"), (animals, "adapter"))
        for photo in photos
    ]
    with run.board.stage("segment", total=len(jobs)) as bar:
        cuts = at_once(jobs, server=command, most=SEGMENTATIONS_AT_ONCE, done=bar.update)
    return photos, cuts[: len(photos)], cuts[len(photos) :]


def judge_styles(run: Run) -> tuple[dict[Path, str], float]:
    """What a classifier takes each drawing for, and how often it is right on real held-out pictures."""
    folder = run.config.workdir / "images"
    files = sorted(path for name in ("base", "adapter") for path in (folder / name).glob("*.png"))
    with run.board.stage("judge", total=len(files)) as bar:
        answer = json.loads(run.processes.call("judge", *files, module="train.style_rate"))
        bar.update(len(files))
    return {path: answer["styles"][str(path)] for path in files}, answer["held_out_accuracy"]


def stop(run: Run, *commands: Command) -> None:
    """Stop what still runs, and wait until it is gone."""
    with run.board.stage("stop", total=len(commands)) as bar:
        for done, command in enumerate(commands):
            bar.update(done, note=command.name)
            run.processes.stop(command)
        bar.update(len(commands), note="")


def first_line(command: Command, timeout_s: float) -> str:
    """The first line that `command` prints: a service's address, once it answers.

    Raises:
        HubctlError: it ended, or took too long.
    """
    deadline = time.monotonic() + timeout_s
    while command.running():
        if lines := command.new_lines():
            return lines[0].strip()
        if time.monotonic() > deadline:
            raise command.failure(f"was not up after {timeout_s:.0f} s")
        time.sleep(POLL_S)
    raise command.failure("ended without a word")


def wait_ready(command: Command, url: str, timeout_s: float) -> None:
    """Wait until `/readyz` says 200.

    Raises:
        HubctlError: the server ended, or took too long.
    """
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy reaches our loopback
    deadline = time.monotonic() + timeout_s
    while command.running():
        try:
            with direct.open(f"{url}/readyz", timeout=10):
                return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            if time.monotonic() > deadline:
                raise command.failure(f"was not ready after {timeout_s:.0f} s") from None
        time.sleep(POLL_S)
    raise command.failure("ended without a word")
