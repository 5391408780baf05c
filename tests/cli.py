"""Runs the real command line in a process of its own, as a user does."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hubctl.settings import child_environment

TIMEOUT_S = 60


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
    done = subprocess.run(
        [sys.executable, "-m", "hubctl", *map(str, words)],
        input=stdin,
        capture_output=True,
        text=True,
        cwd=cwd,
        env=child_environment(**env),
        timeout=TIMEOUT_S,
        check=False,
    )
    return Ran(done.returncode, done.stdout, done.stderr)
