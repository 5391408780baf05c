"""Several processes that train together: against plain torch, stopped, lost, resumed, and wrong together."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import signal
import socket
import subprocess
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from peft import get_peft_model_state_dict
from safetensors.torch import load_file

from hubctl.errors import HubctlError, InputError
from hubctl.settings import child_environment, export
from tests.cli import run_cli
from tests.e2e.server import descendants, wait_until_gone
from tests.train.conftest import Trained, run
from tests.train.test_resume import as_it_is, one_update_without_memory, spoilt_by, steps_with
from train.config import TrainConfig
from train.events import Event, Preparing, Started, StepDone, Warned
from train.plan import batches, learning_rate_factor, rank_seed
from train.ranks import Ranks
from train.run import train


@pytest.fixture(scope="module")
def together(style: Trained, workshop: Path) -> Trained:
    config = two(style.config, output=workshop / "together", steps=STEPS)
    return run(dataclasses.replace(config, sample_every=STEPS))


STEPS = 40
"""Enough to be stopped in between."""


def two(config: TrainConfig, *, output: Path, steps: int, batch_size: int = 2) -> TrainConfig:
    return dataclasses.replace(
        config, processes=2, batch_size=batch_size, steps=steps, learning_rate=1e-3, sample_every=0,
        checkpoint_every=0, output=output,
    )  # fmt: skip


def left_over() -> list[str]:
    return [child.name for child in multiprocessing.active_children()]


# -- what they learn -----------------------------------------------------------------------------


def test_a_process_has_its_part_of_the_step_and_the_first_draws_as_one_alone() -> None:
    ranks = Ranks(Accelerator(cpu=True))
    ranks.count = 3
    parts = []
    for ranks.rank in range(3):
        parts.append(ranks.part((7, 1, 5, 0, 2, 9)))
    assert parts == [(7, 1), (5, 0), (2, 9)]
    assert [rank_seed(5, 0), rank_seed(5, 1) == rank_seed(5, 2)] == [5, False]


def plain(config: TrainConfig) -> dict[str, torch.Tensor]:
    """The same training by torch alone: half of each step's images, noise and dropout for each of two."""
    from hubctl.base_models import locate_base
    from train.adapt import training_mode
    from train.prepare import open_training, prepare

    base = locate_base(config.base)
    _, data, plan = prepare(config, None)
    _, task, _ = open_training(config, plan, base, data)
    module: Any = task.module
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, weight_decay=config.weight_decay)
    generators = [torch.Generator().manual_seed(rank_seed(config.seed, rank)) for rank in range(2)]
    dropout = [torch.get_rng_state(), torch.manual_seed(rank_seed(config.seed, 1)).get_state()]
    for step, indices in enumerate(batches(task.images, 4, plan.steps, config.seed)):
        rate = plan.learning_rate * learning_rate_factor(step, plan.steps, plan.warmup_steps)
        optimizer.param_groups[0]["lr"] = rate
        training_mode(module)
        optimizer.zero_grad()
        for rank, half in enumerate((indices[:2], indices[2:])):
            torch.set_rng_state(dropout[rank])
            (task.loss(module, half, generators[rank]) / 2).backward()
            dropout[rank] = torch.get_rng_state()
        torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
        optimizer.step()
    return get_peft_model_state_dict(module)


def test_two_processes_learn_what_plain_torch_does_with_both_halves(
    together: Trained, trimap: Trained, tmp_path: Path
) -> None:
    masks = run(two(trimap.config, output=tmp_path / "masks", steps=6))
    for trained, prefix in ((together, "unet."), (masks, "")):
        saved = load_file(next(trained.folder.glob("*.safetensors")))
        # The first process's BatchNorm counts its own half alone, as with DistributedDataParallel.
        expected = {k: v for k, v in plain(trained.config).items() if "running" not in k and "num_" not in k}
        assert len(expected) > 4
        for name, value in expected.items():
            torch.testing.assert_close(saved[prefix + name], value, atol=1e-5, rtol=1e-4)
    (started,) = (event for event in together.events if isinstance(event, Started))
    assert (started.processes, started.device) == (2, "cpu")
    assert "| processes | 2 |" in (together.folder / "README.md").read_text()
    assert left_over() == []


# -- the end of one ------------------------------------------------------------------------------


def test_ctrl_c_saves_and_leaves_no_process_and_what_goes_on_is_reproduced_bitwise(
    together: Trained, tmp_path: Path
) -> None:
    asked: list[str | Path] = ["reproduce", together.folder, "--data", together.config.data]
    asked += ["--output", tmp_path / "again", "--json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "hubctl", *map(str, asked)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=child_environment(),
    )  # fmt: skip
    started: dict[int, str] = {}
    told: list[dict[str, Any]] = []
    assert process.stdout
    for line in process.stdout:
        told.append(json.loads(line))
        if told[-1]["event"] == "step_done" and not started:
            started = descendants(process.pid)
            process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "")
    assert [event["event"] for event in told[-2:]] == ["checkpointed", "stopped"]
    assert len(started) >= 2
    wait_until_gone(started)
    work = tmp_path / "again.training"
    with pytest.raises(InputError, match="settings processes was 2, now 1"):
        run(dataclasses.replace(together.config, processes=1, output=tmp_path / "again", resume=True))
    assert (work / "checkpoint.pt").is_file()
    ran = run_cli(*asked, "--resume")
    assert (ran.code, ran.err) == (0, "")
    events = [json.loads(line) for line in ran.out.splitlines()]
    assert [event["step"] for event in events if event["event"] == "resumed"] == [told[-1]["step"]]
    assert events[-1]["identical"]
    assert not work.exists()


def test_one_that_is_killed_ends_all_and_is_named(together: Trained, tmp_path: Path) -> None:
    events = train(two(together.config, output=tmp_path / "out", steps=4))

    def until_killed() -> None:
        for event in events:
            others = [m for m in multiprocessing.active_children() if m.name == "hubctl-rank-1"]
            if isinstance(event, Preparing) and others:
                others[0].kill()

    with pytest.raises(HubctlError, match="process 1 of the 2 that train was killed by SIGKILL"):
        until_killed()
    assert left_over() == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flag", "value", "code", "message"),
    [
        ("data", "{tmp}/none", 2, "there is no folder {tmp}/none"),
        ("base", "emoji-46", 3, "no base model 'emoji-46'"),
        ("output", "{tmp}", 7, "{tmp} exists already"),
        ("processes", "0", 2, "--processes is 0"),
    ],
)
def test_what_the_first_finds_wrong_is_said_once(
    flag: str, value: str, code: int, message: str, diffusion_base: Path, captioned: Path, tmp_path: Path
) -> None:
    places = {"tmp": tmp_path, "data": captioned}
    asked: dict[str, object] = {"base": diffusion_base, "data": captioned, "output": tmp_path / "out"}
    asked |= {"processes": 2, flag: value.format(**places)}
    (tmp_path / "kept.txt").write_text("mine")
    ran = run_cli("train", "text-to-image", *(f"--{name}={given}" for name, given in asked.items()))
    first, hint = ran.err.splitlines()
    assert ran.code == code
    assert message.format(**places) in first
    assert hint.startswith("  next: ")
    assert not (tmp_path / "out.training").exists()


def test_processes_that_somebody_else_has_started_are_as_many_as_asked_for(
    diffusion_base: Path, captioned: Path, tmp_path: Path
) -> None:
    asked: list[str | Path] = [
        "--base",
        diffusion_base,
        "--data",
        captioned,
        "--output",
        tmp_path / "out",
    ]
    ran = run_cli("train", "text-to-image", *asked, "--processes", "2", WORLD_SIZE="3", RANK="1")
    assert ran.code == 2
    assert "3 processes were started for a training of 2" in ran.err
    assert "accelerate launch --num_processes 2" in ran.err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_each_process_wants_a_gpu_of_its_own(together: Trained, tmp_path: Path) -> None:
    more = torch.cuda.device_count() + 1
    config = dataclasses.replace(together.config, processes=more, output=tmp_path / "out")
    with pytest.raises(InputError, match=f"{more} processes want a GPU each"):
        list(train(config))


# -- steps that go wrong in one of them ----------------------------------------------------------


def _both_go_on(rank: int, port: int, config: TrainConfig, pipe: Connection) -> None:
    """A rank whose trainings are spoilt by an image, and by memory that one process is short of."""
    export(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    export(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1", TORCH_CPP_LOG_LEVEL="ERROR")

    def short_of_memory(task: Any, module: Any, indices: Any, generator: torch.Generator) -> torch.Tensor:
        if rank == 1 and len(indices) > 1:
            raise torch.OutOfMemoryError("out of memory")
        loss: torch.Tensor = task.loss(module, indices, generator)
        return loss

    for loss, batch_size in ((spoilt_by("2.png"), 1), (short_of_memory, 2)):
        trained: list[torch.Tensor] = []
        events = [*steps_with(dataclasses.replace(config, batch_size=batch_size), loss, trained)]
        pipe.send((events, [value.numpy() for value in trained]))
    if rank == 0:
        list(steps_with(config, as_it_is))  # ends with the other
    with one_update_without_memory(), pytest.raises(InputError) as caught:
        list(steps_with(config, as_it_is))
    pipe.send(caught.value.message)


def test_a_step_that_is_wrong_in_one_process_is_treated_alike_in_all(style: Trained) -> None:
    config = two(style.config, output=style.folder, steps=6)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    pipes = []
    for rank in range(2):
        ours, theirs = context.Pipe()
        context.Process(target=_both_go_on, args=(rank, port, config, theirs), daemon=True).start()
        theirs.close()
        pipes.append(ours)
    for check in (_skipped, _halved):
        (events, values), (others, same) = (pipe.recv() for pipe in pipes)
        assert all((one == other).all() for one, other in zip(values, same, strict=True))
        for one, other in zip(events, others, strict=True):
            if isinstance(one, StepDone):
                assert (one.step, one.loss) == (other.step, other.loss)
            else:
                assert one == other
        check(events)
    # Nobody could bring the others back to the step before.
    assert pipes[1].recv() == "process 1 of 2 has no memory left to update the adapter in step 1"


def _skipped(events: list[Event]) -> None:
    warned = [event.message for event in events if isinstance(event, Warned)]
    assert len(warned) == 3  # four images, two a step
    assert all("the loss of 2.png is no number" in message for message in warned)


def _halved(events: list[Event]) -> None:
    (warned,) = (event.message for event in events if isinstance(event, Warned))
    assert warned.startswith("out of memory with 2 images at once")
    assert [event.step for event in events if isinstance(event, StepDone)] == [*range(1, 7)]
