"""`hubctl train --cluster` on a real Ray head with its dashboard, pushed from there to a real registry."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hubctl.settings import child_environment
from tests.cli import run_cli
from tests.e2e.server import descendants, wait_until_gone
from tests.registry_server import RegistryServer
from tests.train import tiny

START_S = 300
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    ports = []
    for _ in range(2):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            ports.append(probe.getsockname()[1])
    command = [
        str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=1", f"--port={ports[0]}",
        "--include-dashboard=true",
        "--dashboard-host=127.0.0.1", f"--dashboard-port={ports[1]}", "--object-store-memory=100000000",
    ]  # fmt: skip
    log = tmp_path_factory.mktemp("cluster") / "log"
    # A folder of its own, of a short name for its sockets: what others start would join this cluster.
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    env = child_environment(
        RAY_USAGE_STATS_ENABLED="0",
        RAY_AUTH_MODE="disabled",
        RAY_TMPDIR=folder,
        PATH=f"{BIN}{os.pathsep}{os.environ['PATH']}",
    )
    with log.open("w") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, env=env)
    address = f"http://127.0.0.1:{ports[1]}"
    try:
        _wait_for_dashboard(process, address, log)
        yield address
    finally:
        started = descendants(process.pid)
        process.terminate()
        process.wait(START_S)
        wait_until_gone(started)
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for_dashboard(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    from ray.job_submission import JobSubmissionClient

    deadline_s = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < deadline_s:
        try:
            JobSubmissionClient(address).list_jobs()
        except (ConnectionError, RuntimeError):
            time.sleep(0.5)
        else:
            return
    raise AssertionError(f"no dashboard:\n{log.read_text()}")


def words(cluster: str, data: Path, *more: str) -> list[str]:
    return [
        "train", "text-to-image", "--base", "emoji-64", "--data", str(data), "--output", "my adapter",
        "--steps", "2",
        "--batch-size", "1", "--sample-every", "0", "--cluster", cluster, "--gpus", "0", *more,
    ]  # fmt: skip


def test_an_adapter_is_trained_and_pushed_there_and_seen_from_here(
    tmp_path: Path, cluster: str, registry: RegistryServer
) -> None:
    data = tiny.captioned_folder(tmp_path / "data")
    token = registry.token("clara")
    env: dict[str, Any] = {"HF_ENDPOINT": registry.endpoint, "HUBCTL_TOKEN": token}
    asked = words(cluster, data, "--repo", "clara/there", "--send-token", "--seed", "5", "--json")
    ran = run_cli(*asked, cwd=tmp_path, **env)
    assert ran.code == 0, ran.err
    events = [json.loads(line) for line in ran.out.splitlines()]
    kinds = [event["event"] for event in events]
    assert kinds.count("step_done") == 2
    assert kinds[-2:] == ["verified", "pushed"]
    shown = json.loads(run_cli("show", "clara/there", "--json", **env).out)
    assert shown["commit"] == events[-1]["commit"]
    pulled = run_cli("pull", "clara/there", "--output", tmp_path / "pulled", **env)
    assert pulled.code == 0, pulled.err
    assert json.loads((tmp_path / "pulled" / "recipe.lock").read_text())["settings"]["seed"] == 5
    assert not (tmp_path / "my adapter").exists()
    assert token not in ran.out + ran.err
    from ray.job_submission import JobSubmissionClient

    client = JobSubmissionClient(cluster)
    (job,) = client.list_jobs()
    assert token not in str(job)
    assert token not in client.get_job_logs(str(job.submission_id))


def test_faults_there_are_said_here_before_the_training(
    tmp_path: Path, cluster: str, registry: RegistryServer
) -> None:
    data = tiny.captioned_folder(tmp_path / "data")
    ran = run_cli(*words(cluster, data), cwd=tmp_path, HF_ENDPOINT=registry.endpoint)
    assert ran.code != 0
    assert "on the cluster: no token" in ran.err
    assert "training" not in ran.err.replace("the training", "")
    own = run_cli(*words(cluster, data, "--base", str(tmp_path)), cwd=tmp_path, HF_ENDPOINT=registry.endpoint)
    assert "the cluster cannot see the folder" in own.err
    plan = run_cli(*words(cluster, data, "--plan"), cwd=tmp_path)
    assert "--plan measures this machine" in plan.err
    absent = run_cli(*words("http://127.0.0.1:9", data), cwd=tmp_path, HF_ENDPOINT=registry.endpoint)
    assert absent.code == 8
    assert "no Ray dashboard at http://127.0.0.1:9" in absent.err


def test_ctrl_c_ends_it_there_too(tmp_path: Path, cluster: str, registry: RegistryServer) -> None:
    from ray.job_submission import JobStatus, JobSubmissionClient

    client = JobSubmissionClient(cluster)
    before = {job.submission_id for job in client.list_jobs()}
    asked = words(cluster, tiny.captioned_folder(tmp_path / "data"), "--send-token", "--json")
    asked[asked.index("2")] = "100000"
    process = subprocess.Popen(
        [str(BIN / "hubctl"), *asked], cwd=tmp_path, stdout=subprocess.PIPE, text=True,
        env=child_environment(HF_ENDPOINT=registry.endpoint, HUBCTL_TOKEN=registry.token("carl")),
    )  # fmt: skip
    assert process.stdout
    for line in process.stdout:
        if json.loads(line)["event"] == "step_done":
            break
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=START_S)
    assert process.returncode == 130
    (job,) = [job for job in client.list_jobs() if job.submission_id not in before]
    assert job.status == JobStatus.STOPPED


def test_words_survive_the_way() -> None:
    from hubctl.cli.cluster import _script

    asked = ["train", "dreambooth", "--instance-prompt", "it's a 'tok' dog"]
    script = _script(asked, "my dog", repo=None, with_token=False)
    (line,) = [line for line in script.splitlines() if "dreambooth" in line]
    assert shlex.split(line)[3:] == [
        "train", "dreambooth", "--instance-prompt", "it's a 'tok' dog", "--output", "$made/my dog", "--json",
    ]  # fmt: skip
