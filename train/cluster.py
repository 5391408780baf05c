"""A command run as a Ray job: its folder sent there, its output read back line by line."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from hubctl.errors import AccessError, InputError, UnavailableError

_TALKATIVE = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
T = TypeVar("T")
POLL_S = 0.5
AGAIN_S = (1, 2, 4, 8, 16, 30, 30)
"""Waits before each further try where the dashboard does not answer; a busy head takes that long to start."""
CONNECT_S = 10
ANSWER_S = 60
"""Between a question, or a piece of a large folder, and the dashboard's next byte."""
_NOT_UP = "No available agent"
"""Of Ray's answer to a job where the head has just started: nothing has been begun."""
STOP_S = 60
"""How long a stopped job may take to end."""


def run_job(
    address: str,
    command: str,
    *,
    folder: Path,
    gpus: float,
    env: Mapping[str, str],
    again_s: Sequence[float] = AGAIN_S,
    answer_s: float = ANSWER_S,
) -> Generator[str, None, None]:
    """Run `command` on the cluster in a copy of `folder`; yields its output's lines.

    Closing the generator early stops the job.

    Args:
        address: Of the head's dashboard, as http://HOST:8265.
        command: For a shell.
        folder: What the job works in; 500 MiB at most, as Ray has it.
        gpus: That the job takes; it waits until they are free.
        env: Variables of the job; everyone who sees the dashboard sees them.
        again_s: How long to wait before each further try where a question about the job gets no answer, or
            where the cluster is not up yet.
        answer_s: How long a dashboard that is there may be silent.

    Raises:
        UnavailableError: nobody answers at the address in time; or no longer, and then the job goes on.
        AccessError: the cluster wants a token of its own.
        InputError: the cluster does not take the job, or it failed there.
    """
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobStatus, JobSubmissionClient

    class Client(JobSubmissionClient):
        """Ray's, which would wait for an answer for ever."""

        def _do_request(self, method: str, endpoint: str, **how: Any) -> Any:
            return super()._do_request(method, endpoint, timeout=(CONNECT_S, answer_s), **how)

    try:
        client = Client(address)
    except AuthenticationError as error:
        raise AccessError(
            f"the Ray cluster at {address} wants a token",
            hint="export RAY_AUTH_TOKEN=...; see its administrator",
        ) from error
    except (OSError, RuntimeError, ValueError) as error:
        raise UnavailableError(
            f"no Ray dashboard at {address}: {error}", hint="give the head's, e.g. --cluster http://HEAD:8265"
        ) from error
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        job = _patiently(
            lambda: client.submit_job(
                entrypoint=command,
                runtime_env={"working_dir": str(folder), "env_vars": dict(env)},
                entrypoint_num_gpus=gpus,
            ),
            again_s,
            lambda error: _NOT_UP in str(error),
        )
    except OSError as error:
        raise UnavailableError(
            f"the Ray dashboard at {address} does not say whether it takes the job: {error}",
            hint=f"ray job list --address {address}, before you try again",
        ) from error
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"the cluster does not take the job: {error}", hint="look at its dashboard"
        ) from error
    logs = f"ray job logs {job} --address {address}"
    try:
        status = yield from _lines(client, job, again_s)
    except (RuntimeError, OSError) as error:
        raise UnavailableError(
            f"the Ray dashboard at {address} answers no more ({error}); the job {job} goes on, unless the "
            "cluster is gone",
            hint=f"look at it with: {logs} --follow",
        ) from error
    except BaseException:
        _stop(client, job)
        raise
    if status != JobStatus.SUCCEEDED:
        raise InputError(f"the job {job} on {address} has {status.value.lower()}", hint=logs)


def _lines(client: Any, job: str, again_s: Sequence[float]) -> Generator[str, None, Any]:
    """Whole lines of the job's output, as they come; returns the status that it ended with.

    Asked for again and again: an interrupt in the middle of an awaited stream would leave it half open.
    """
    seen = 0
    ended = False
    while not ended:
        status = _patiently(lambda: client.get_job_status(job), again_s)
        ended = status.is_terminal()  # asked first: nothing is written after it
        text = _patiently(lambda: client.get_job_logs(job), again_s)
        end = len(text) if ended else text.rfind("\n") + 1
        yield from text[seen:end].splitlines()
        seen = max(seen, end)
        if not ended:
            time.sleep(POLL_S)
    return status


def _patiently(
    ask: Callable[[], T], again_s: Sequence[float], passes: Callable[[Exception], bool] = lambda _: True
) -> T:
    """The answer, after some more tries where there is none; `passes` tells faults that may be over then."""
    for wait_s in again_s:
        try:
            return ask()
        except (RuntimeError, OSError) as error:
            if not passes(error):
                raise
        time.sleep(wait_s)
    return ask()


def _stop(client: Any, job: str) -> None:
    """End a job that still runs, and wait until it has ended."""
    until_s = time.monotonic() + STOP_S
    with contextlib.suppress(RuntimeError, OSError):  # the cluster is gone, and the job with it
        if not client.get_job_status(job).is_terminal():
            client.stop_job(job)
        while not client.get_job_status(job).is_terminal() and time.monotonic() < until_s:
            time.sleep(POLL_S)
