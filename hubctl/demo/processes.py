"""Subprocesses of the demo: each in a session of its own, logged to files, and surely stopped again."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from hubctl.demo.family import Entry, family, read_table, still_alive
from hubctl.demo.interrupts import Interrupts
from hubctl.errors import HubctlError

POLL_S = 0.1
TAIL_LINES = 12
GRACE_S = 25.0
"""How long a command may take to stop by itself; a server has a cluster to take down."""
KILL_GRACE_S = 3.0
GIVE_UP_S = 10.0


class Command:
    """One running command. Its stdout and stderr go to files, from which the demo reads as they grow."""

    def __init__(self, name: str, process: subprocess.Popen[str], out: Path, log: Path) -> None:
        self.name, self.process, self.out, self.log = name, process, out, log
        self._read = 0

    def new_lines(self) -> list[str]:
        """The whole lines that it has written to stdout since the last call."""
        with self.out.open("rb") as file:
            file.seek(self._read)
            whole = b"".join(file.read().rpartition(b"\n")[:2])
        self._read += len(whole)
        return whole.decode("utf-8", errors="replace").splitlines()

    def running(self) -> bool:
        """Whether it runs.

        Raises:
            HubctlError: it has ended, and not well; with the end of its log.
        """
        code = self.process.poll()
        if code:
            raise self.failure(f"ended with exit status {code}")
        return code is None

    def failure(self, what: str) -> HubctlError:
        """The fault that says `what` happened to it, with the end of its log and where the rest is."""
        return HubctlError(f"{self.name} {what}\n{tail(self.log)}", hint=f"less {shlex.quote(str(self.log))}")


class Processes:
    """Starts commands of hubctl, and stops whatever is left of them when it is closed.

    Args:
        logs: the folder for the files; one pair for each command.
        environment: of the commands, whole.
        cwd: where they run.
        interrupts: held while a process is between started and noted.
    """

    def __init__(
        self, logs: Path, *, environment: Mapping[str, str], cwd: Path, interrupts: Interrupts
    ) -> None:
        self._logs, self._environment, self._cwd = logs, dict(environment), cwd
        self._interrupts = interrupts
        self._commands: list[Command] = []
        self.typed: list[str] = []
        """What a person would have typed, in order."""

    def start(self, name: str, *args: str | Path, module: str = "hubctl", **environment: str) -> Command:
        """Start `python -m module args`; `name` says what it is, in messages and in its files' names."""
        out = self._file(name, ".out")
        with out.open("w") as stdout:
            return self._start(name, args, module, environment, out, stdout=stdout, stdin=subprocess.DEVNULL)

    def call(
        self, name: str, *args: str | Path, module: str = "hubctl", stdin: str = "", **environment: str
    ) -> str:
        """Run a command to its end and give its stdout, which goes to no file: it may be a secret.

        Raises:
            HubctlError: it failed.
        """
        pipe = subprocess.PIPE
        out = self._file(name, ".out")
        command = self._start(name, args, module, environment, out, stdout=pipe, stdin=pipe)
        answer, _ = command.process.communicate(stdin)
        command.running()  # raises when it failed
        self._commands.remove(command)
        return answer

    def _start(
        self,
        name: str,
        args: Sequence[str | Path],
        module: str,
        environment: Mapping[str, str],
        out: Path,
        *,
        stdout: int | IO[str],
        stdin: int,
    ) -> Command:
        log = self._file(name, ".log")
        words = [str(arg) for arg in args]
        program = ["hubctl"] if module == "hubctl" else ["python", "-m", module]
        self.typed.append(shlex.join([*program, *words]))
        with self._interrupts.held(), log.open("w") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", module, *words],
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                env={**self._environment, **environment},
                cwd=self._cwd,
                text=True,
                start_new_session=True,  # Ctrl-C is ours alone; and the session finds all its processes
            )
            command = Command(name, process, out, log)
            self._commands.append(command)
        return command

    def _file(self, name: str, suffix: str) -> Path:
        return self._logs / (name.replace(" ", "-") + suffix)

    def stop(self, command: Command, *, grace_s: float = GRACE_S) -> None:
        """Ask it to stop; then make sure that neither it nor anything it started is left."""
        members = family(read_table(), command.process.pid)
        if command.process.poll() is None:
            command.process.terminate()
            try:
                command.process.wait(grace_s)
            except subprocess.TimeoutExpired:
                _signal_group(command.process.pid, signal.SIGKILL)
                command.process.wait()
        _end(members | family(read_table(), command.process.pid))
        _signal_group(command.process.pid, signal.SIGKILL)  # all there is to do where there is no /proc
        if command in self._commands:
            self._commands.remove(command)

    def close(self) -> None:
        """Stop everything, the newest first."""
        with self._interrupts.ignored():
            for command in reversed(self._commands[:]):
                self.stop(command)


@contextmanager
def processes(
    logs: Path, *, environment: Mapping[str, str], cwd: Path, interrupts: Interrupts
) -> Iterator[Processes]:
    """`Processes` that are all gone at the end, however it comes."""
    logs.mkdir(parents=True, exist_ok=True)
    opened = Processes(logs, environment=environment, cwd=cwd, interrupts=interrupts)
    try:
        yield opened
    finally:
        opened.close()


def while_running(commands: Sequence[Command]) -> Iterator[None]:
    """Come round every moment while any of them runs, and once more at the end.

    Raises:
        HubctlError: one of them failed.
    """
    while any([command.running() for command in commands]):  # a list: each is asked, none is skipped
        yield
        time.sleep(POLL_S)
    yield


def tail(path: Path, lines: int = TAIL_LINES) -> str:
    """The last lines of a log, indented."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    kept = [line for line in text.splitlines() if line.strip()][-lines:]
    return "\n".join(f"  | {line}" for line in kept) or "  | (it wrote nothing)"


def _end(members: set[Entry]) -> None:
    """Kill what is left of `members`, after a short wait for those that are on their way out."""
    started = time.monotonic()
    while left := still_alive(read_table(), members):
        waited_s = time.monotonic() - started
        if waited_s > GIVE_UP_S:  # not even SIGKILL ends a process that hangs in the kernel
            return
        if waited_s > KILL_GRACE_S:
            for entry in left:
                _signal(entry.pid, signal.SIGKILL)
        time.sleep(POLL_S)


def _signal(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):  # it ended by itself
        os.kill(pid, number)


def _signal_group(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, number)
