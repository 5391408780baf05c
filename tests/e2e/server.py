"""`hubctl serve` as a user runs it: a process of its own, with real Ray under it."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from hubctl.settings import child_environment

START_S = 600
STOP_S = 120


@dataclass(frozen=True, slots=True)
class Running:
    """A server that answers."""

    url: str
    pid: int

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Status and answer."""
        data = json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        return self._answer(request)

    def get(self, path: str) -> tuple[int, dict[str, Any]]:
        """Status and answer."""
        return self._answer(urllib.request.Request(self.url + path))

    def metric(self, name: str, **labels: str) -> float:
        """The present value of a metric; 0 while nothing has been counted."""
        with _open(urllib.request.Request(self.url + "/metrics")) as response:
            families = text_string_to_metric_families(response.read().decode())
        samples = (sample for family in families for sample in family.samples)
        return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())

    def replicas(self, deployment: str) -> int:
        """How many processes under this server run replicas of `deployment`, by their titles."""
        title = re.compile(rf"ray::ServeReplica:hubctl:{re.escape(deployment)}(?![A-Za-z0-9_-])")
        return sum(title.search(found) is not None for found in descendants(self.pid).values())

    def _answer(self, request: urllib.request.Request) -> tuple[int, dict[str, Any]]:
        try:
            with _open(request) as response:
                return response.status, json.loads(response.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())


@contextmanager
def serving(
    words: Sequence[str | Path], log: Path, *, cwd: Path | None = None, **env: str
) -> Iterator[Running]:
    """`hubctl serve WORDS` until the block ends, then Ctrl-C; nothing of it may be left."""
    command = [sys.executable, "-m", "hubctl", "--quiet", "serve", *map(str, words)]
    with log.open("w") as err:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=err, text=True, cwd=cwd, env=child_environment(**env)
        )
    assert process.stdout is not None
    try:
        yield Running(read_line(process, log), process.pid)
        started = descendants(process.pid)
        process.send_signal(signal.SIGINT)
        assert process.wait(STOP_S) == 0, log.read_text()
        wait_until_gone(started)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(STOP_S)
        process.stdout.close()


def _open(request: urllib.request.Request) -> Any:
    """Past whatever proxy the environment names."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=120)


def read_line(process: subprocess.Popen[str], log: Path) -> str:
    """The one line that the server prints once it is ready."""
    assert process.stdout is not None
    if not select.select([process.stdout], [], [], START_S)[0]:
        raise AssertionError(f"the server was not ready within {START_S} s:\n{log.read_text()}")
    line = process.stdout.readline().strip()
    if not line:
        raise AssertionError(f"the server ended with code {process.wait()}:\n{log.read_text()}")
    return line


def descendants(pid: int) -> dict[int, str]:
    """The processes below `pid`: their ids and titles."""
    parents: dict[int, int] = {}
    titles: dict[int, str] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text()
            titles[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
        except OSError:  # it has ended meanwhile
            continue
        parents[int(folder.name)] = int(stat.rpartition(")")[2].split()[1])
    below = {pid}
    while more := {child for child, parent in parents.items() if parent in below} - below:
        below |= more
    return {child: titles[child] for child in below - {pid}}


def wait_until_gone(processes: dict[int, str]) -> None:
    """Fail when one of them is still there after a while."""
    deadline = time.monotonic() + STOP_S
    left = dict(processes)
    while left and time.monotonic() < deadline:
        left = {pid: title for pid, title in left.items() if _alive(pid)}
        time.sleep(0.05)
    assert not left, f"left behind: {left}"


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
