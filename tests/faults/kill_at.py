"""A command that kills itself, with SIGKILL, right before it touches the disk for the Nth time.

`python -m tests.faults.kill_at N FOLDER WORDS...` runs `hubctl WORDS`; only changes below FOLDER count. With
N = 0 it runs to its end and leaves their number in FOLDER.changes.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
from pathlib import Path
from typing import Any

from hubctl.cli.main import main

CHANGES = {"os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod", "os.utime"}


def is_change(event: str, args: tuple[Any, ...]) -> bool:
    """Whether an audit event (https://docs.python.org/3/library/audit_events.html) is a change on disk."""
    if event == "open":
        return bool(isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    return event in CHANGES


def install(at: int, folder: str) -> None:
    """Count from here on."""
    numbers = itertools.count(1)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if is_change(event, args) and str(args[0]).startswith(folder):
            number = next(numbers)
            if number == at:
                os.kill(os.getpid(), signal.SIGKILL)
            if at == 0:
                seen.append(number)

    sys.addaudithook(hook)


if __name__ == "__main__":
    at, folder = int(sys.argv[1]), sys.argv[2]
    sys.argv[1:] = sys.argv[3:]
    seen: list[int] = []
    install(at, folder)
    try:
        main()
    finally:
        Path(f"{folder}.changes").write_text(str(len(seen)))
