"""On a terminal: questions, hidden input, tables and bars, through a real pseudo-terminal."""

from __future__ import annotations

import fcntl
import os
import re
import select
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import TYPE_CHECKING

from hubctl.settings import child_environment
from tests.adapters import write_adapter, write_base
from tests.cli import run_cli

if TYPE_CHECKING:
    from tests.registry_server import RegistryServer

TIMEOUT_S = 300


def type_in(*words: str | Path, asked: str = "", answer: str = "", columns: int = 100) -> tuple[int, str]:
    """Run `hubctl` on a terminal, type `answer` once `asked` is on it; exit code and all that was shown."""
    main, terminal = os.openpty()
    termios.tcsetwinsize(terminal, (40, columns))
    process = subprocess.Popen(
        [sys.executable, "-m", "hubctl", *map(str, words)],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # hidden input asks the controlling terminal
        env=child_environment(TERM="xterm-256color"),
    )
    os.close(terminal)
    shown, deadline = b"", time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        if not select.select([main], [], [], 1)[0]:
            continue
        try:
            chunk = os.read(main, 65536)
        except OSError:  # Linux's way to say that the last writer is gone
            break
        if not chunk:
            break
        shown += chunk
        if asked and asked.encode() in shown:
            asked = ""
            os.write(main, answer.encode() + b"\n")
    os.close(main)
    return process.wait(TIMEOUT_S), shown.decode()


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_the_token_is_asked_for_and_not_shown(registry: RegistryServer) -> None:
    token = registry.token("typist")
    run_cli("remote", "add", "local", registry.endpoint, "--use")
    code, shown = type_in("login", asked="Token for local", answer=token)
    assert code == 0, shown
    assert token not in shown
    assert "as typist" in shown


def test_removing_asks_first(registry: RegistryServer, tmp_path: Path) -> None:
    token = registry.token("remover")
    run_cli("remote", "add", "local", registry.endpoint, "--use", "--token-stdin", stdin=token)
    base = write_base(tmp_path / "base")
    code, shown = type_in("push", write_adapter(tmp_path / "a", str(base)))
    assert code == 0
    assert "remover/a@" in plain(shown)
    assert "Uploading 3 files" in plain(shown)
    code, shown = type_in("remove", "remover/a", asked="[y/N]", answer="n")
    assert code == 2
    assert "not done: you said no" in plain(shown)
    code, shown = type_in("remove", "remover/a", asked="[y/N]", answer="y")
    assert code == 0
    assert "remover/a removed from local" in plain(shown)


def test_a_table_fits_the_terminal() -> None:
    run_cli("remote", "add", "a-name", "http://127.0.0.1:9/" + "long/" * 30)
    _, shown = type_in("remote", "list", columns=60)
    assert "https://huggingface.co" in plain(shown)
    assert max(map(len, plain(shown).splitlines())) <= 60


def test_colours_can_be_turned_off() -> None:
    _, shown = type_in("remote", "use", "nowhere")
    assert "\x1b[" in shown
    _, shown = type_in("--no-color", "remote", "use", "nowhere")
    assert "\x1b[" not in shown
