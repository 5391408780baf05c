"""The rendered laptop deployment, run by Ray's own `serve run` as its README says, with two replicas."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path

from hubctl.settings import child_environment
from serve.config import BaseConfig, ServeConfig
from serve.deploy import to_yaml
from serve.engine.config import EngineConfig
from tests.adapters import write_base
from tests.e2e.server import START_S, STOP_S, Running, descendants, wait_until_gone
from tests.serve.waiting import until

ROOT = Path(__file__).parent.parent.parent


def test_laptop_config_runs_with_two_replicas(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    base = BaseConfig(
        ref=str(write_base(tmp_path / "tiny")),
        min_replicas=2,
        max_replicas=4,
        num_cpus=0.5,
        engine=EngineConfig(kind="echo"),
    )
    (tmp_path / "laptop.yaml").write_text(to_yaml(ServeConfig(port=port, bases=(base,)), "laptop"))
    command = [str(Path(sys.executable).parent / "serve"), "run", str(tmp_path / "laptop.yaml")]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=ROOT, env=child_environment(RAY_USAGE_STATS_ENABLED="0")
        )
    try:
        server = Running(f"http://127.0.0.1:{port}", process.pid)
        _wait_until_ready(server, process, tmp_path / "log")
        until(lambda: server.replicas("engine-tiny") == 2, within_s=START_S)  # ready is what has one of them
        body = {"prompt": "red apple", "seed": 1}
        assert server.post("/v1/images/generations", body)[1]["hubctl"]["seed"] == 1
    finally:
        started = descendants(process.pid)
        process.terminate()
        process.wait(STOP_S)
    wait_until_gone(started)


def _wait_until_ready(server: Running, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if server.get("/readyz") == (200, {"status": "ready"}):
                return
        except (OSError, ValueError):  # not listening yet, or Ray's own "no such route"
            pass
        time.sleep(0.2)
    raise AssertionError(f"not ready:\n{log.read_text()}")
