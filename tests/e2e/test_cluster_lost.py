"""A Ray dashboard that drops out while a job runs: HTTP as Ray's own client speaks it, then silence."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from hubctl.errors import UnavailableError
from train.cluster import run_job

JOB = "raysubmit_1"
DETAILS, LOG = f"/api/jobs/{JOB}", f"/api/jobs/{JOB}/logs"


class Dashboard(ThreadingHTTPServer):
    """Answers until the log was asked for, then hangs up on as many questions as it is told to."""

    def __init__(self, silent_for: int) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.silent_for = silent_for
        self.asked: list[str] = []
        self.answers = {
            "/api/version": {"version": "4", "ray_version": "2.60.0", "ray_commit": ""},
            "/api/jobs/": {"job_id": JOB, "submission_id": JOB},
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
        self._answer()

    def _answer(self) -> None:
        body = json.dumps(self.server.answers.get(self.path, {})).encode()
        self.send_response(200)
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
