"""Many downloads of one file at once, by clients that cost next to nothing; the plainest server for them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

PROCESSES = 4
READ_BYTES = 1 << 20


def pull_together(url: str, count: int) -> float:
    """Download `url` `count` times at once; MB/s of all together."""
    share = [count // PROCESSES + (number < count % PROCESSES) for number in range(PROCESSES)]
    command = [sys.executable, "-m", "hubctl.bench.pullers", url]
    processes = [
        subprocess.Popen([*command, str(n)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for n in share
        if n
    ]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()  # it is ready
    start = time.perf_counter()
    outputs = [process.communicate("go\n")[0] for process in processes]
    return sum(map(int, outputs)) / (time.perf_counter() - start) / 1e6


def plain_server(path: Path) -> AbstractContextManager[str]:
    """A server that answers everything with the file, by sendfile; its address."""
    return child(sys.executable, "-m", "hubctl.bench.pullers", "--serve", str(path))


@contextmanager
def child(*command: str) -> Iterator[str]:
    """A server in a process of its own; the address that it says first."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def _pull(url: str) -> int:
    parts = urlsplit(url)
    buffer = bytearray(READ_BYTES)
    with socket.create_connection((str(parts.hostname), int(parts.port or 80))) as connection:
        request = f"GET {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n\r\n"
        connection.sendall(request.encode())
        total = 0
        while count := connection.recv_into(buffer):
            total += count
    return total


def _pull_in_threads(url: str, count: int) -> None:
    _say("ready")
    sys.stdin.readline()
    sizes: list[int] = []
    threads = [threading.Thread(target=lambda: sizes.append(_pull(url))) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    _say(str(sum(sizes)))


def _serve(path: Path) -> None:
    def answer(connection: socket.socket) -> None:
        with connection, path.open("rb") as file:
            connection.recv(1 << 16)
            head = f"HTTP/1.1 200 OK\r\nContent-Length: {path.stat().st_size}\r\nConnection: close\r\n\r\n"
            connection.sendall(head.encode())
            connection.sendfile(file)

    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        _say(f"http://127.0.0.1:{listener.getsockname()[1]}/")
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=answer, args=(connection,), daemon=True).start()


def _say(text: str) -> None:
    """A line through the pipe to the process that started this one."""
    os.write(sys.stdout.fileno(), f"{text}\n".encode())


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        _serve(Path(sys.argv[2]))
    else:
        _pull_in_threads(sys.argv[1], int(sys.argv[2]))
