"""A real registry for tests: `hubctl registry serve` in its own process, on a free port."""

from __future__ import annotations

import os
import resource
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from hubctl.registry.auth import create_token

START_S = 30
STOP_S = 15


class RegistryServer:
    """Context manager: a registry kept in `root`, served while the block runs.

        with RegistryServer(tmp_path / "registry", "--part-size", "64KB") as registry:
            api = HfApi(endpoint=registry.endpoint, token=registry.token("alice"))

    The same `root` may be served again afterwards: everything is still there. With `killing_at` the server
    kills itself right before it changes something in `root` for that time (see `tests.faults.kill_at`).
    """

    def __init__(self, root: Path, *options: str, killing_at: int | None = None) -> None:
        self.root = root
        self._options = options
        self._killing_at = killing_at
        self.endpoint = ""
        """`http://127.0.0.1:PORT`, once the block is entered."""
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        program = ["hubctl"]
        if self._killing_at is not None:
            program = ["tests.faults.kill_at", str(self._killing_at), str(self.root)]
        command = [sys.executable, "-m", *program, "--quiet", "registry", "serve"]
        self._process = subprocess.Popen(
            [*command, "--root", str(self.root), "--port", "0", *self._options],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parent.parent,
        )
        try:
            self.endpoint = self._read_address(self._process)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def signal(self, number: signal.Signals) -> None:
        """Send the server a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def limit_files(self, size_bytes: int) -> None:
        """From now on, let the server write no file larger than this: a disk that is full, for it alone."""
        assert self._process is not None
        resource.prlimit(self._process.pid, resource.RLIMIT_FSIZE, (size_bytes, size_bytes))

    def token(self, user: str) -> str:
        """A new token of `user`, who is created if new."""
        return create_token(self.root, user)

    def stop(self) -> int:
        """Stop the server as a process manager would; returns its exit code. Harmless when it is stopped."""
        assert self._process is not None
        self._process.terminate()
        try:
            code = self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()
        return code

    def _read_address(self, process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            readable, _, _ = select.select([process.stdout], [], [], 0.2)
            if readable:
                address = process.stdout.readline().strip()
                if not address:
                    raise RuntimeError(f"the registry stopped at once, with code {process.wait()}")
                return address
        raise RuntimeError(f"the registry did not answer within {START_S} s")


def isolated_environment(home: Path, registry: RegistryServer, token: str | None = None) -> dict[str, str]:
    """Environment for a stock Hub client in a subprocess: own home, this registry, this token."""
    # The library's caches follow HOME. Nothing of the caller's own settings may reach it.
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL") if name in os.environ}
    kept |= {"HOME": str(home), "HF_ENDPOINT": registry.endpoint}
    return kept | ({"HF_TOKEN": token} if token else {})
