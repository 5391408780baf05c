from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli import run_cli
from tests.train.conftest import Trained
from train.config import TrainConfig


def environment(home: Path) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "HUBCTL_HOME": str(home), "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--base", "emoji-46", "--data", "{data}"), 3, "no base model 'emoji-46'"),
        (("--base", "{base}", "--data", "{data}/none"), 2, "there is no folder {data}/none"),
        (("--base", "{base}", "--data", "{data}", "--rank", "0"), 2, "--rank is 0"),
        (("--base", "{seg}", "--data", "{data}"), 2, "{seg} is a base for image-segmentation"),
    ],
)
def test_faults_are_one_line_with_the_next_command(
    arguments: tuple[str, ...], code: int, message: str,
    tmp_path: Path, diffusion_base: Path, segmentation_base: Path, captioned: Path,
) -> None:  # fmt: skip
    places = {"base": diffusion_base, "seg": segmentation_base, "data": captioned}
    filled = [argument.format(**places) for argument in arguments]
    done = run_cli("train", "text-to-image", *filled, "--output", tmp_path / "out")
    assert done.code == code
    assert done.out == ""
    lines = done.err.splitlines()
    assert lines[0].startswith("Error: ")
    assert message.format(**places) in lines[0]
    assert lines[1].startswith("  next: ")
    assert len(lines) == 2
    assert not (tmp_path / "out").exists()


def test_a_training_as_json_lines_and_a_taken_folder(
    tmp_path: Path, diffusion_base: Path, captioned: Path
) -> None:
    arguments = (
        "train", "text-to-image", "--base", diffusion_base, "--data", captioned, "--output", tmp_path / "out",
        "--steps", 2, "--batch-size", 2, "--rank", 2, "--sample-every", 0, "--json",
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "hubctl", *map(str, arguments)],
        text=True, capture_output=True, check=False, env=environment(tmp_path / "home"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["event"] for event in events if event["event"] != "preparing"] == [
        "started", "step_done", "checkpointed", "step_done", "checkpointed", "evaluated", "verified",
        "saved",
    ]  # fmt: skip
    assert events[-1]["path"] == str(tmp_path / "out")
    # Libraries keep quiet: nothing stands between the lines of a program that reads both streams.
    assert done.stderr == ""
    again = run_cli(*map(str, arguments))
    assert again.code == 7
    assert json.loads(again.err)["error"]["type"] == "ConflictError"


WEIGHTS = "pytorch_lora_weights.safetensors"


def sixty_steps(config: TrainConfig) -> list[str]:
    return [
        "train", "text-to-image", "--base", str(config.base),
        "--data", str(config.data), "--steps", "60", "--lr", "0.001", "--batch-size", "4", "--rank", "4",
        "--sample-every", "0", "--checkpoint-every", "5",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, style: Trained) -> bytes:
    folder = tmp_path_factory.mktemp("uninterrupted")
    done = run_cli(*sixty_steps(style.config), "--output", folder / "out")
    assert done.code == 0, done.err
    return (folder / "out" / WEIGHTS).read_bytes()


def stopped(command: list[str], step: int, how: signal.Signals, home: Path) -> tuple[int, list[Any]]:
    """Start a training, send it the signal when it has done the step: its exit code, and all that it says."""
    with subprocess.Popen(
        [sys.executable, "-m", "hubctl", *command, "--json"],
        text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(home),
    ) as process:  # fmt: skip
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(json.loads(line) if line.endswith("\n") else None)
            if said[-1] and (said[-1]["event"], said[-1].get("step")) == ("step_done", step):
                process.send_signal(how)
        return process.wait(), said


def test_a_training_that_is_stopped_time_and_again_comes_to_the_same_bytes(
    tmp_path: Path, style: Trained, uninterrupted: bytes
) -> None:
    output = tmp_path / "work" / "out"
    output.parent.mkdir()
    command = [*sixty_steps(style.config), "--output", str(output)]
    for step, how, words in ((7, signal.SIGINT, []), (13, signal.SIGTERM, ["--resume"])):
        code, said = stopped([*command, *words], step, how, tmp_path)
        assert code == 130
        assert said[-1]["event"] == "stopped"
        assert not output.exists()
    code, said = stopped([*command, "--resume"], 23, signal.SIGKILL, tmp_path)
    assert code == -signal.SIGKILL
    assert not output.exists()
    refused = run_cli(*command)
    assert refused.code == 7
    assert "--resume" in refused.err
    done = run_cli(*command, "--resume")
    assert done.code == 0, done.err
    assert "going on after step" in done.err
    assert (output / WEIGHTS).read_bytes() == uninterrupted
    assert [path.name for path in output.parent.iterdir()] == ["out"]


@pytest.mark.parametrize(("checkpoints", "limit_kb"), [("1", 30), ("0", 10)])
def test_a_disk_that_fills_up_is_said_and_nothing_is_left(
    checkpoints: str, limit_kb: int, tmp_path: Path, style: Trained
) -> None:
    """The system's limit on a file's size stands for the disk: checkpoint, then weights, do not fit."""
    command = [*sixty_steps(style.config), "--steps", "2", "--checkpoint-every", checkpoints]
    line = shlex.join([sys.executable, "-m", "hubctl", *command, "--output", str(tmp_path / "out")])
    done = subprocess.run(
        ["bash", "-c", f"ulimit -f {limit_kb}; exec {line}"],
        text=True, capture_output=True, check=False, env=environment(tmp_path / "home"),
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "Error: the disk is full" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.training").exists()
