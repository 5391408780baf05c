"""A hub that may lie about everything: names, sizes, hashes, commits, and what it sends for them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "alice/x"
WEIGHTS = "pytorch_lora_weights.safetensors"

Send = Callable[[BaseHTTPRequestHandler], None]


@dataclass
class HostileHub:
    """Serves one repository; a test changes what it says and sends before anybody asks."""

    files: dict[str, bytes]
    """What is sent for each path, and truly described, unless `said` has something else to say."""
    said: dict[str, Any] = field(default_factory=dict)
    """Fields of the answer about the repository, instead of the true ones."""
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Fields of a file's entry, instead of the true ones."""
    send: dict[str, Send] = field(default_factory=dict)
    """How a file is sent, instead of honestly."""
    tokens: list[str | None] = field(default_factory=list)
    """The Authorization headers that came."""

    def __call__(self, request: BaseHTTPRequestHandler) -> None:
        """Answer one request."""
        self.tokens.append(request.headers.get("Authorization"))
        if request.path.startswith("/api/models/"):
            answer(request, json.dumps(self._info()).encode())
            return
        path = request.path.partition(f"/resolve/{COMMIT}/")[2]
        if path in self.send:
            self.send[path](request)
        elif path in self.files:
            answer(request, self.files[path])
        else:
            answer(request, b"{}", status=404)

    def _info(self) -> dict[str, Any]:
        siblings = []
        for name, content in self.files.items():
            digest = hashlib.sha256(content).hexdigest()
            entry = {
                "rfilename": name, "size": len(content), "blobId": "0" * 40,
                "lfs": {"sha256": digest, "size": len(content), "pointerSize": 130},
            }  # fmt: skip
            siblings.append({**entry, **self.entries.get(name, {})})
        return {"id": REPO, "sha": COMMIT, "siblings": siblings, "private": False, "tags": [], **self.said}


def answer(request: BaseHTTPRequestHandler, body: bytes, *, status: int = 200, **headers: str) -> None:
    """Send `body` as it is, whatever the headers say of it."""
    request.send_response(status)
    for name, value in {"Content-Length": str(len(body)), **headers}.items():
        request.send_header(name.replace("_", "-"), value)
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(body)


def endless(request: BaseHTTPRequestHandler) -> None:
    """Zeros, until the other side has had enough."""
    request.send_response(200)
    request.send_header("Connection", "close")
    request.end_headers()
    request.close_connection = True
    try:
        while True:
            request.wfile.write(bytes(1 << 16))
    except OSError:
        return


def redirect(to: str) -> Send:
    """To another address."""
    return lambda request: answer(request, b"", status=302, Location=to)
