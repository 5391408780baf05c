"""Small real HTTP servers that misbehave in one way each."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import SplitResult, urlsplit

Answer = Callable[[BaseHTTPRequestHandler], None]


@contextmanager
def serving(answer: Answer) -> Iterator[str]:
    """Serve `answer` for every request on a free port; yields the endpoint."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = lambda self: answer(self)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def always(status: int, body: bytes, **headers: str) -> Answer:
    """The same answer to everything."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        length = int(request.headers.get("Content-Length") or 0)
        request.rfile.read(length)
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name.replace("_", "-"), value)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(body)

    return answer


class CountingProxy:
    """Hands requests on to `endpoint`, and remembers what each asked for and how many bytes came back."""

    def __init__(self, endpoint: str) -> None:
        self.seen: list[tuple[str, str, int]] = []
        """Method, path and bytes of each answer."""
        self.tokens: set[str | None] = set()
        """The Authorization headers that came."""
        self._target = urlsplit(endpoint)

    def of(self, name: str) -> list[int]:
        """The bytes of each answer about the file `name`."""
        return [count for _, path, count in self.seen if path.endswith(name)]

    def __call__(self, request: BaseHTTPRequestHandler) -> None:
        """Answer one request."""
        response, body = _passed_on(request, self._target)
        self.tokens.add(request.headers.get("Authorization"))
        self.seen.append((request.command, request.path, len(body)))
        _begin(request, response)
        request.wfile.write(body)


class CuttingProxy:
    """Hands requests on to `endpoint`, but breaks downloads of `name` off after `cuts` bytes, one by one."""

    def __init__(self, endpoint: str, name: str, cuts: list[int]) -> None:
        self.ranges: list[str | None] = []
        """The Range header of each download of `name`."""
        self._target = urlsplit(endpoint)
        self._name = name
        self._cuts = cuts

    def __call__(self, request: BaseHTTPRequestHandler) -> None:
        """Answer one request."""
        response, body = _passed_on(request, self._target)
        _begin(request, response)
        if request.command == "GET" and request.path.endswith(self._name):
            self.ranges.append(request.headers.get("Range"))
            if self._cuts:
                request.wfile.write(body[: self._cuts.pop(0)])
                request.close_connection = True
                return
        request.wfile.write(body)


class StallingProxy:
    """Hands requests on to `endpoint`, but stops in the middle of the first download of `name`."""

    def __init__(self, endpoint: str, name: str, after: int) -> None:
        self.go_on = threading.Event()
        """Ends the stop, by breaking the connection."""
        self.ranges: list[str | None] = []
        """The Range header of each download of `name`."""
        self.others: list[str] = []
        """Other files that were asked for."""
        self._target = urlsplit(endpoint)
        self._name = name
        self._after = after

    def __call__(self, request: BaseHTTPRequestHandler) -> None:
        """Answer one request."""
        response, body = _passed_on(request, self._target)
        _begin(request, response)
        if request.command == "GET" and request.path.endswith(self._name):
            self.ranges.append(request.headers.get("Range"))
            if len(self.ranges) == 1:
                request.wfile.write(body[: self._after])
                self.go_on.wait()
                request.close_connection = True
                return
        elif "/resolve/" in request.path:
            self.others.append(request.path.rpartition("/")[2])
        request.wfile.write(body)


def _passed_on(
    request: BaseHTTPRequestHandler, target: SplitResult
) -> tuple[http.client.HTTPResponse, bytes]:
    """What `target` answers to the same request."""
    upstream = http.client.HTTPConnection(str(target.hostname), target.port)
    headers = {k: v for k, v in request.headers.items() if k.lower() not in ("host", "connection")}
    sent = request.rfile.read(int(request.headers.get("Content-Length") or 0))
    upstream.request(request.command, request.path, body=sent or None, headers=headers)
    response = upstream.getresponse()
    body = response.read()
    upstream.close()
    return response, body


def _begin(request: BaseHTTPRequestHandler, response: http.client.HTTPResponse) -> None:
    """Send the head of an answer as it came."""
    request.send_response(response.status)
    for name, value in response.getheaders():
        if name.lower() not in ("connection", "transfer-encoding", "date", "server"):
            request.send_header(name, value)
    request.end_headers()
