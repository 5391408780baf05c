"""A Ray dashboard that is not up yet, or drops out while a job runs: HTTP as Ray's own client speaks it."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from hubctl.errors import InputError, UnavailableError
from train.cluster import run_job

JOB = "raysubmit_1"
JOBS = "/api/jobs/"
DETAILS, LOG = f"/api/jobs/{JOB}", f"/api/jobs/{JOB}/logs"


class Dashboard(ThreadingHTTPServer):
    """Answers until the log was asked for, then hangs up on as many questions as it is told to."""

    def __init__(self, silent_for: int) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.silent_for = silent_for
        self.refusals: list[str] = []
        """What it says to the next jobs instead of taking them."""
        self.deaf_to_jobs = False
        self.asked: list[str] = []
        self.answers = {
            "/api/version": {"version": "4", "ray_version": "2.60.0", "ray_commit": ""},
            JOBS: {"job_id": JOB, "submission_id": JOB},
            DETAILS: {"type": "SUBMISSION", "submission_id": JOB, "status": "RUNNING", "entrypoint": ""},
            LOG: {"logs": "first\nsecond\nthi"},
        }

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Dashboard

    def do_GET(self) -> None:
        silent = LOG in self.server.asked and self.server.silent_for > 0
        self.server.asked.append(self.path)
        if silent:
            self.server.silent_for -= 1
        else:
            self._answer()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.asked.append(self.path)
        if self.path == JOBS and self.server.deaf_to_jobs:
            return
        if self.path == JOBS and self.server.refusals:
            self._send(500, self.server.refusals.pop().encode())
        else:
            self._answer()

    def _answer(self) -> None:
        self._send(200, json.dumps(self.server.answers.get(self.path, {})).encode())

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def dashboard(request: pytest.FixtureRequest) -> Iterator[Dashboard]:
    with Dashboard(request.param) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def job(dashboard: Dashboard, folder: Path) -> Iterator[str]:
    return run_job(dashboard.address, "true", folder=folder, gpus=0, env={}, again_s=(0, 0))


@pytest.mark.parametrize("dashboard", [1000], indirect=True)
def test_a_dashboard_that_answers_no_more_leaves_the_job_alone(dashboard: Dashboard, tmp_path: Path) -> None:
    lines = job(dashboard, tmp_path)
    assert [next(lines), next(lines)] == ["first", "second"]
    before = len(dashboard.asked)
    with pytest.raises(UnavailableError, match=f"answers no more .*; the job {JOB} goes on") as lost:
        next(lines)
    assert lost.value.hint == f"look at it with: ray job logs {JOB} --address {dashboard.address} --follow"
    assert dashboard.asked[before:] == [DETAILS] * 3  # and it was not stopped


@pytest.mark.parametrize("dashboard", [2], indirect=True)
def test_a_dashboard_that_comes_back_is_listened_to_further(dashboard: Dashboard, tmp_path: Path) -> None:
    lines = job(dashboard, tmp_path)
    assert [next(lines), next(lines)] == ["first", "second"]
    dashboard.answers[LOG] = {"logs": "first\nsecond\nthird\n"}
    dashboard.answers[DETAILS] |= {"status": "SUCCEEDED"}
    assert list(lines) == ["third"]
    assert dashboard.silent_for == 0


@pytest.mark.parametrize("dashboard", [0], indirect=True)
def test_a_head_that_has_just_started_is_asked_again(dashboard: Dashboard, tmp_path: Path) -> None:
    dashboard.refusals = ["No available agent to submit job, please try again later."] * 2
    dashboard.answers[DETAILS] |= {"status": "SUCCEEDED"}
    assert list(job(dashboard, tmp_path)) == ["first", "second", "thi"]
    assert dashboard.asked.count(JOBS) == 3


@pytest.mark.parametrize("dashboard", [0], indirect=True)
def test_another_refusal_is_told_at_once(dashboard: Dashboard, tmp_path: Path) -> None:
    dashboard.refusals = ["no such runtime environment"]
    with pytest.raises(InputError, match=r"does not take the job: .*no such runtime environment"):
        next(job(dashboard, tmp_path))
    assert dashboard.asked.count(JOBS) == 1


@pytest.mark.parametrize("dashboard", [0], indirect=True)
def test_a_job_without_an_answer_is_not_sent_twice(dashboard: Dashboard, tmp_path: Path) -> None:
    dashboard.deaf_to_jobs = True
    with pytest.raises(UnavailableError, match="does not say whether it takes the job") as lost:
        next(job(dashboard, tmp_path))
    assert lost.value.hint == f"ray job list --address {dashboard.address}, before you try again"
    assert dashboard.asked.count(JOBS) == 1


def test_a_dashboard_that_never_answers_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        lines = run_job(address, "true", folder=tmp_path, gpus=0, env={}, answer_s=0.1)
        with pytest.raises(UnavailableError, match=f"no Ray dashboard at {address}: .*timed out"):
            next(lines)
