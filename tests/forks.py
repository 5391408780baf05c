"""A process that has imported what commands need, and forks one of its own for each command.

`python -m tests.forks FD MODULE...` is that process: it imports the modules, then takes commands from the
listening socket FD. It ends with its standard input, which its parent holds open as long as it lives.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parent.parent
STREAMS = {"in": os.O_RDONLY, "out": os.O_WRONLY | os.O_CREAT, "err": os.O_WRONLY | os.O_CREAT}


class Forks:
    """The process, started at once: what it imports is ready when it answers first."""

    def __init__(self, *modules: str) -> None:
        folder = tempfile.mkdtemp(prefix="hubctl-forks-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        self._address = str(Path(folder, "socket"))
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self._address)
            listener.listen(16)
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.forks", str(listener.fileno()), *modules],
                stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                pass_fds=[listener.fileno()], cwd=REPOSITORY,
            )  # fmt: skip

    def run(
        self, words: Sequence[str], cwd: Path, environment: Mapping[str, str], streams: Path, timeout_s: float
    ) -> int:
        """Run `hubctl words...`, with its three streams from and to files in the folder; its exit code.

        Raises: TimeoutExpired, when it has been killed with whatever it had started.
        """
        asked = {"words": words, "cwd": str(cwd), "environment": dict(environment), "streams": str(streams)}
        with socket.socket(socket.AF_UNIX) as channel, channel.makefile("rw", encoding="utf-8") as lines:
            channel.connect(self._address)
            lines.write(json.dumps(asked) + "\n")
            lines.flush()
            group = int(lines.readline())
            channel.settimeout(timeout_s)
            try:
                return int(lines.readline())
            except TimeoutError:
                os.killpg(group, signal.SIGKILL)
                raise subprocess.TimeoutExpired(["hubctl", *words], timeout_s) from None


def _serve(listener: socket.socket) -> None:
    """A process for each that connects, which waits for the command's process and says how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # none is left behind as a zombie
    while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
        channel, _ = listener.accept()
        with channel:
            if os.fork() == 0:
                listener.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                _answer(channel)
                os._exit(0)


def _answer(channel: socket.socket) -> None:
    with channel.makefile("rw", encoding="utf-8") as lines:
        asked = json.loads(lines.readline())
        command = os.fork()
        if command == 0:
            os.setpgid(0, 0)
            os._exit(_run(**asked))
        lines.write(f"{command}\n")
        lines.flush()
        _, status = os.waitpid(command, 0)
        lines.write(f"{os.waitstatus_to_exitcode(status)}\n")


def _run(words: list[str], cwd: str, environment: dict[str, str], streams: str) -> int:
    """All of a new process: what `python -m hubctl` has around it, and the command."""
    for number, (name, mode) in enumerate(STREAMS.items()):
        opened = os.open(Path(streams, name), mode)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin = os.fdopen(0, encoding="utf-8")
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.argv = ["hubctl", *words]
    from hubctl.cli.main import main

    code: Any = 0
    try:
        main()
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return code if isinstance(code, int) else int(code is not None)


if __name__ == "__main__":
    for module in sys.argv[2:]:
        importlib.import_module(module)
    gc.freeze()  # or collections in each fork would copy all that it has inherited
    _serve(socket.socket(fileno=int(sys.argv[1])))
