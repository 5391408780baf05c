"""A wire between client and registry that counts what passes, and does something at a chosen moment."""

from __future__ import annotations

import selectors
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

READ_BYTES = 1 << 16
PIECE_BYTES = 1 << 20


class Tap:
    """Passes connections on; right before the moment numbered `at` it calls `act`.

    A moment is the beginning of a request, the beginning of an answer, or another MiB of one of them.
    """

    def __init__(self, endpoint: str, at: int = 0, act: Callable[[], None] = lambda: None) -> None:
        self.moments = 0
        """How many there have been."""
        target = urlsplit(endpoint)
        self._target = (str(target.hostname), target.port)
        self._at, self._act = at, act
        self._lock = threading.Lock()

    @contextmanager
    def open(self) -> Iterator[str]:
        """Listen on a free port; yields the endpoint for clients."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            threading.Thread(target=self._listen, args=(listener,), daemon=True).start()
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
            _stop_listening(listener)

    def _listen(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._connect, args=(client, listener), daemon=True).start()

    def _connect(self, client: socket.socket, listener: socket.socket) -> None:
        with client:
            try:
                with socket.create_connection(self._target) as server:
                    self._pass_on(client, server)
            except ConnectionRefusedError:
                _stop_listening(listener)  # as its target has: a client is to see nobody, not a broken wire
            except OSError:
                pass  # one of them was killed

    def _pass_on(self, client: socket.socket, server: socket.socket) -> None:
        speaker, said = None, 0
        with selectors.DefaultSelector() as selector:
            for one in (client, server):
                selector.register(one, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    source = key.fileobj
                    assert isinstance(source, socket.socket)
                    data = source.recv(READ_BYTES)
                    if not data:
                        return
                    said = said + len(data) if source is speaker else len(data)
                    if source is not speaker or said >= PIECE_BYTES:
                        speaker, said = source, 0
                        self._moment()
                    (server if source is client else client).sendall(data)

    def _moment(self) -> None:
        with self._lock:
            self.moments += 1
            if self.moments == self._at:
                self._act()


def _stop_listening(listener: socket.socket) -> None:
    with suppress(OSError):  # it has been stopped already
        listener.shutdown(socket.SHUT_RDWR)
