"""Runs the real command line in a process of its own, as a user does.

On Linux that process is forked from one in which the commands are imported already: the tests start hundreds,
and to import them anew takes each half a second and more. What a start from nothing does is tested by itself,
in `tests/hubctl/cli/test_start.py` and wherever tests run `python -m hubctl`.
"""

from __future__ import annotations

import atexit
import ctypes
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hubctl.settings import child_environment

TIMEOUT_S = 60
PR_CAPBSET_DROP = 24
CAPABILITIES = (1, 2)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH: what lets root pass by the modes of files
_STREAMS = {"in": os.O_RDONLY, "out": os.O_WRONLY | os.O_CREAT, "err": os.O_WRONLY | os.O_CREAT}
_READ_LATE = ("HUBCTL_", "PYTEST_", "NO_COLOR", "COLUMNS", "LINES", "TERM")
"""Variables that nothing reads at import: a process may be forked though they have changed since."""

_forks: Any = None
_forks_environment: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """Stdout as JSON, after checking that the command succeeded."""
        import json

        assert self.code == 0, self.err
        return json.loads(self.out)


def run_cli(*words: str | Path, stdin: str = "", cwd: Path | None = None, **env: str) -> Ran:
    """Run `hubctl words...` with `env` on top of the test's environment."""
    arguments, environment = [*map(str, words)], child_environment(**env)
    if sys.platform == "linux" and _may_fork(environment):
        return _forked(arguments, stdin, cwd or Path.cwd(), environment)
    return _started(arguments, stdin, cwd, environment)


def run_limited(*words: str | Path, largest_file_bytes: int = -1) -> Ran:
    """Run `hubctl words...` as an account that modes of files bind, as they do not bind root.

    With `largest_file_bytes` it may write no larger file: a disk that is full, for it alone.
    """

    def limit() -> None:
        libc = ctypes.CDLL(None)
        for capability in CAPABILITIES:
            libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file_bytes, -1))

    return _started([*map(str, words)], "", None, child_environment(), limit)


def _started(
    words: Sequence[str],
    stdin: str,
    cwd: Path | None,
    environment: Mapping[str, str],
    before: Callable[[], None] | None = None,
) -> Ran:
    done = subprocess.run(
        [sys.executable, "-m", "hubctl", *words],
        input=stdin,
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment,
        timeout=TIMEOUT_S,
        check=False,
        preexec_fn=before,
    )
    return Ran(done.returncode, done.stdout, done.stderr)


def _may_fork(environment: Mapping[str, str]) -> bool:
    """Whether what was imported ahead, in the environment of the first call, is the same in this one."""
    global _forks, _forks_environment
    if _forks is None:
        _forks, _forks_environment = multiprocessing.get_context("forkserver"), child_environment()
        _forks.set_forkserver_preload(["hubctl.cli.main", "hubctl.hub.client", "hubctl.hub.push"])
    changed = dict(environment.items() ^ _forks_environment.items())
    return all(name.startswith(_READ_LATE) for name in changed)


def _forked(words: Sequence[str], stdin: str, cwd: Path, environment: Mapping[str, str]) -> Ran:
    with tempfile.TemporaryDirectory() as folder:
        streams = {name: Path(folder, name) for name in _STREAMS}
        streams["in"].write_text(stdin, encoding="utf-8")
        process = _forks.Process(target=_command, args=(words, cwd, environment, Path(folder)))
        process.start()
        process.join(TIMEOUT_S)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(["hubctl", *words], TIMEOUT_S)
        out, err = (streams[name].read_text(encoding="utf-8") for name in ("out", "err"))
        return Ran(process.exitcode, out, err)


def _command(words: Sequence[str], cwd: Path, environment: Mapping[str, str], folder: Path) -> None:
    """All of a new process: what `python -m hubctl` has around it, and the command."""
    for number, (name, mode) in enumerate(_STREAMS.items()):
        opened = os.open(folder / name, mode)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin = os.fdopen(0, encoding="utf-8")  # multiprocessing has put nothing in its place
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.argv = ["hubctl", *words]
    from hubctl.cli.main import main

    try:
        main()
    finally:
        atexit._run_exitfuncs()  # which multiprocessing leaves out
