"""A command run as a Ray job: its folder sent there, its output read back line by line."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

from hubctl.errors import AccessError, InputError, UnavailableError

_TALKATIVE = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
POLL_S = 0.5
STOP_S = 60
"""How long a stopped job may take to end."""


def run_job(
    address: str, command: str, *, folder: Path, gpus: float, env: Mapping[str, str]
) -> Generator[str, None, None]:
    """Run `command` on the cluster in a copy of `folder`; yields its output's lines.

    Closing the generator early stops the job.

    Args:
        address: Of the head's dashboard, as http://HOST:8265.
        command: For a shell.
        folder: What the job works in; 500 MiB at most, as Ray has it.
        gpus: That the job takes; it waits until they are free.
        env: Variables of the job; everyone who sees the dashboard sees them.

    Raises:
        UnavailableError: nobody answers at the address.
        AccessError: the cluster wants a token of its own.
        InputError: the cluster does not take the job, or it failed there.
    """
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobStatus, JobSubmissionClient

    try:
        client = JobSubmissionClient(address)
    except AuthenticationError as error:
        raise AccessError(
            f"the Ray cluster at {address} wants a token",
            hint="export RAY_AUTH_TOKEN=...; see its administrator",
        ) from error
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UnavailableError(
            f"no Ray dashboard at {address}: {error}", hint="give the head's, e.g. --cluster http://HEAD:8265"
        ) from error
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        job = client.submit_job(
            entrypoint=command,
            runtime_env={"working_dir": str(folder), "env_vars": dict(env)},
            entrypoint_num_gpus=gpus,
        )
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"the cluster does not take the job: {error}", hint="look at its dashboard"
        ) from error
    try:
        yield from _lines(client, job)
        status = client.get_job_status(job)
        if status != JobStatus.SUCCEEDED:
            raise InputError(
                f"the job {job} on {address} has {status.value.lower()}",
                hint=f"ray job logs {job} --address {address}",
            )
    finally:
        _stop(client, job)


def _lines(client: Any, job: str) -> Generator[str, None, None]:
    """Whole lines of the job's output, as they come.

    Asked for again and again: an interrupt in the middle of an awaited stream would leave it half open.
    """
    seen = 0
    ended = False
    while not ended:
        ended = client.get_job_status(job).is_terminal()  # asked first: nothing is written after it
        text = client.get_job_logs(job)
        end = len(text) if ended else text.rfind("\n") + 1
        yield from text[seen:end].splitlines()
        seen = max(seen, end)
        if not ended:
            time.sleep(POLL_S)


def _stop(client: Any, job: str) -> None:
    """End a job that still runs, and wait until it has ended."""
    until_s = time.monotonic() + STOP_S
    with contextlib.suppress(RuntimeError, OSError):  # the cluster is gone, and the job with it
        if not client.get_job_status(job).is_terminal():
            client.stop_job(job)
        while not client.get_job_status(job).is_terminal() and time.monotonic() < until_s:
            time.sleep(POLL_S)
