"""Runs the real command line in a process of its own, as a user does.

On Linux that process is forked from one in which the commands are imported already: the tests start hundreds,
and to import them anew takes each half a second, with torch ten and more. What a start from nothing does is
tested by itself, in `tests/hubctl/cli/test_start.py` and wherever tests run `python -m hubctl`.
"""

from __future__ import annotations

import ctypes
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hubctl.settings import child_environment
from tests.forks import STREAMS, Forks

TIMEOUT_S = 300
PR_CAPBSET_DROP = 24
CAPABILITIES = (1, 2)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH: what lets root pass by the modes of files
_READ_LATE = ("HUBCTL_", "PYTEST_", "NO_COLOR", "COLUMNS", "LINES", "TERM")
"""Variables that nothing reads at import: a process may be forked though they have changed since."""

_LIGHT = ("hubctl.cli.main", "hubctl.hub.client", "hubctl.hub.push")
_HEAVY = (
    *_LIGHT, "train.run", "train.loop", "train.evaluation.run",
    "train.tasks.text_to_image", "train.tasks.dreambooth", "train.tasks.segmentation",
)  # fmt: skip
_COMPUTE = frozenset({"train", "eval", "reproduce"})
"""Commands that need torch, and fork from where it is imported; to others its memory would be a burden."""


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
    if sys.platform == "linux":
        forks, then = _forks(heavy=not _COMPUTE.isdisjoint(arguments[:2]))
        changed = dict(environment.items() ^ then.items())
        if all(name.startswith(_READ_LATE) for name in changed):
            return _forked(forks, arguments, stdin, cwd or Path.cwd(), environment)
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


@cache
def _forks(*, heavy: bool) -> tuple[Forks, Mapping[str, str]]:
    """A process that has imported ahead, and the environment that it did so in."""
    return Forks(*(_HEAVY if heavy else _LIGHT)), child_environment()


def _forked(forks: Forks, words: Sequence[str], stdin: str, cwd: Path, environment: Mapping[str, str]) -> Ran:
    with tempfile.TemporaryDirectory() as folder:
        streams = {name: Path(folder, name) for name in STREAMS}
        streams["in"].write_text(stdin, encoding="utf-8")
        code = forks.run(words, cwd, environment, Path(folder), TIMEOUT_S)
        out, err = (streams[name].read_text(encoding="utf-8") for name in ("out", "err"))
        return Ran(code, out, err)
