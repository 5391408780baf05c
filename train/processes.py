"""A training in several processes of this machine: started, listened to, and ended together.

They meet as those that `accelerate launch` starts do, by RANK, WORLD_SIZE and MASTER_ADDR. Through a pipe to
each, this process hears events (of the first) and faults (of any), and asks the first to stop; a pipe that is
closed, in whatever way this process ends, ends the process behind it: none is ever left over.
"""

from __future__ import annotations

import _thread
import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import NoReturn

from hubctl.base_models import FetchBase
from hubctl.errors import HubctlError
from hubctl.settings import export, export_defaults
from train.config import TrainConfig
from train.events import Event, StepDone

Train = Callable[..., Generator[Event, None, None]]
"""`train.run.train`."""
END_S = 10
"""How long a process may take to clean up behind it before it is killed."""
LAST_WORDS_S = 1
"""How long a failed process's partners may take to fail of it."""
_ASKS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Failure:
    """What ended a process."""

    rank: int
    when_s: float
    """On the machine's clock: what came first led to the others."""
    error: HubctlError | None
    trace: str
    """Of an error that is a bug."""


@dataclass(slots=True)
class _Member:
    """A process, and how far it has come."""

    process: BaseProcess
    pipe: Connection
    failed: bool = False
    """It has said why."""
    ended: bool = False


def train_together(
    train: Train, config: TrainConfig, *, fetch_base: FetchBase | None, stop: Callable[[], bool]
) -> Generator[Event, None, None]:
    """The events of a training in `config.processes` processes, each of which runs `train`.

    `train` and `fetch_base` go along, so they must be functions that can be imported.

    Raises:
        HubctlError: what a process has found, or that one was lost.
        RuntimeError: one has failed for a reason that is not the user's, with its traceback.
    """
    port = _free_port()
    members: list[_Member] = []
    asked = False
    try:
        members.append(_start(0, train, config, fetch_base, port))
        for event in _events(members):
            if len(members) == 1 < config.processes:
                # The first has found nothing wrong with the request, and brought the base.
                for rank in range(1, config.processes):
                    members.append(_start(rank, train, config, fetch_base, port))
            yield event
            if isinstance(event, StepDone) and not asked and stop():
                asked = True
                with contextlib.suppress(OSError):  # its end is on the way
                    members[0].pipe.send("stop")
    finally:
        _end(members)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# -- the process that started the others -----------------------------------------------------------


def _start(rank: int, train: Train, config: TrainConfig, fetch_base: FetchBase | None, port: int) -> _Member:
    count = config.processes
    env = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(
        target=_run, args=(train, config, fetch_base, env, theirs), name=f"hubctl-rank-{rank}", daemon=True
    )
    # A terminal's Ctrl-C goes to all processes in it, but is only for this one. The tracker, which Python
    # starts along with the first process, would lift the block again.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ASKS)
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    theirs.close()
    return _Member(process, ours)


def _events(members: list[_Member]) -> Generator[Event, None, None]:
    """What the first process tells, until all have ended; members may be added between two events."""
    while any(not member.ended for member in members):
        failures: list[_Failure] = []
        for message in _heard(members):
            if isinstance(message, _Failure):
                failures.append(message)
            else:
                yield message
        if failures:
            raise _fault(failures, members)


def _heard(members: list[_Member], timeout_s: float | None = None) -> Iterator[Event | _Failure]:
    """A message of each process that has one, waiting for the first of them."""
    speakers = {member.pipe: member for member in members if not member.ended}
    for pipe in wait([*speakers], timeout_s):
        member = speakers[pipe]  # type: ignore[index]
        try:
            message = member.pipe.recv()
        except (EOFError, ConnectionResetError):
            member.ended = True
            member.process.join()
            if member.process.exitcode and not member.failed:
                yield _lost(members.index(member), len(members), member.process.exitcode)
            continue
        member.failed = isinstance(message, _Failure)
        yield message


def _lost(rank: int, count: int, code: int) -> _Failure:
    """The failure of a process that has ended without a word: before all others, which have then lost it."""
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"has ended with the code {code}"
    error = HubctlError(
        f"process {rank} of the {count} that train {how}",
        hint="see whether memory was short (dmesg), then train again; --resume goes on from a checkpoint",
    )
    return _Failure(rank=rank, when_s=0.0, error=error, trace="")


def _fault(failures: list[_Failure], members: list[_Member]) -> Exception:
    """The first of all failures; who loses a partner fails too, and may have been heard before it."""
    until_s = time.monotonic() + LAST_WORDS_S
    while any(not m.ended for m in members) and all(failure.error is None for failure in failures):
        left_s = until_s - time.monotonic()
        if left_s <= 0:
            break
        failures += [said for said in _heard(members, left_s) if isinstance(said, _Failure)]
    first = min(failures, key=lambda failure: failure.when_s)
    if first.error is not None:
        return first.error
    return RuntimeError(f"process {first.rank} of {len(members)} has failed:\n{first.trace}")


def _end(members: list[_Member]) -> None:
    # The first after the others: without them it ends and cleans up by itself.
    for member in reversed(members):
        if member is members[0] and len(members) > 1:
            member.process.join(LAST_WORDS_S)
        member.pipe.close()
    for member in members:
        member.process.join(END_S)
        if member.process.is_alive():
            member.process.kill()
            member.process.join()


# -- a process that trains -------------------------------------------------------------------------


def _run(
    train: Train, config: TrainConfig, fetch_base: FetchBase | None, env: dict[str, str], pipe: Connection
) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, _ASKS)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # for `interrupt_main`
    os.dup2(2, 1)  # stdout is for the answer, which the other process gives
    export(**env)
    export_defaults(
        OMP_NUM_THREADS=str(max(1, (os.cpu_count() or 1) // config.processes)),
        TORCH_CPP_LOG_LEVEL="ERROR",  # that the first is not there yet
    )
    warnings.filterwarnings("ignore", category=FutureWarning)
    rank = int(env["RANK"])
    asked, failed = threading.Event(), threading.Event()
    threading.Thread(target=_listen, args=(pipe, rank, asked, failed), daemon=True).start()
    try:
        with closing(train(config, fetch_base=fetch_base, stop=asked.is_set)) as events:
            for event in events:
                if rank == 0:
                    pipe.send(event)
    except BaseException as error:
        failed.set()
        failure = _Failure(
            rank=rank,
            when_s=time.monotonic(),
            error=error if isinstance(error, HubctlError) else None,
            trace=traceback.format_exc(),
        )
        with contextlib.suppress(OSError):  # nobody listens any more
            pipe.send(failure)
        # Taken down in order, the process group would wait for those that wait for this one.
        _leave(1)
    # All that it has made is in its place. Taken down in order, it was once aborted by a library's thread,
    # which looked as if the training had failed.
    _leave(0)


def _leave(code: int) -> NoReturn:
    """End this process at once."""
    sys.stderr.flush()
    os._exit(code)


def _listen(pipe: Connection, rank: int, asked: threading.Event, failed: threading.Event) -> None:
    """Hear that the training is to stop; when nobody is at the other end, end it."""
    try:
        while True:
            pipe.recv()
            asked.set()
    except (EOFError, OSError):
        if rank == 0 and not failed.is_set():  # it alone has something to clean up
            _thread.interrupt_main()
            time.sleep(END_S)  # unless it waits, inside a library, for processes that are no more
        os._exit(1)
