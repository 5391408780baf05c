"""Serve a registry until told to stop."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from hubctl.errors import ConflictError, InputError
from hubctl.registry.app import create_app
from hubctl.registry.limits import Limits

GRACE_S = 5


def serve(
    root: Path,
    host: str,
    port: int,
    ready: Callable[[str], object],
    *,
    base_url: str | None = None,
    limits: Limits | None = None,
) -> None:
    """Serve the registry in `root` until SIGTERM or Ctrl-C; running requests get some seconds to finish.

    `ready` is called once with the address, as soon as requests are answered. Port 0 takes a free one.

    Raises:
        ConflictError: the port is taken, or another process serves `root`.
        InputError: `host` is no address of this machine, or `root` cannot be a registry.
    """
    with only_server_of(root), _listening(host, port) as listener:
        app = create_app(root, base_url=base_url, limits=limits)
        services = app.state.services
        services.blobs.sweep()
        services.xorbs.sweep()
        config = uvicorn.Config(
            app,
            log_level="warning",
            lifespan="off",
            server_header=False,
            timeout_graceful_shutdown=GRACE_S,
            timeout_keep_alive=30,
        )
        bound_host, bound_port = listener.getsockname()[:2]
        shown = f"[{bound_host}]" if ":" in bound_host else bound_host
        with _stop_signals_are_no_deaths():
            _Server(config, lambda: ready(f"http://{shown}:{bound_port}")).run(sockets=[listener])
        services.close()


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, ready: Callable[[], object]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()


@contextmanager
def only_server_of(root: Path) -> Iterator[None]:
    """Be the one process that serves (or replaces) the registry in `root`, as long as the block lasts.

    Raises:
        ConflictError: another process is.
        InputError: `root` cannot be a registry.
    """
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise InputError(f"{root} cannot hold a registry: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise ConflictError(
            f"another registry serves {root} already", hint="stop it, or choose another --root"
        ) from error
    try:
        yield
    finally:
        os.close(lock)


@contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    try:
        address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError as error:
        raise InputError(f"{host!r} is no address of this machine: {error.strerror}") from error
    with socket.socket(address[0], address[1]) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address[4])
        except PermissionError as error:
            raise InputError(f"port {port} needs more rights", hint="choose a --port above 1023") from error
        except OSError as error:
            raise ConflictError(
                f"cannot listen on {host} port {port}: {error.strerror}",
                hint="choose another --port, or 0 for a free one",
            ) from error
        yield listener


@contextmanager
def _stop_signals_are_no_deaths() -> Iterator[None]:
    """Uvicorn shuts down on a signal and then raises it again; after a clean stop that must not kill us."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signals = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, lambda *_: None) for number in signals]
    try:
        yield
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
