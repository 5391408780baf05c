"""What happens around every request: its name, its raw path, the rest of its body."""

from __future__ import annotations

import secrets
from http.client import responses

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_UNREAD_BYTES = 128 * 1024 * 1024
_PLAIN_FAULTS = {416: "the range asked for begins after the end of the file"}


def request_id(scope: Scope) -> str:
    """The name that `NameRequest` gave to a request."""
    return str(scope.get("hubctl.request_id", ""))


class NameRequest:
    """Gives each answer an `X-Request-Id`, which clients quote in errors, and each refusal its reason."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        name = scope["hubctl.request_id"] = secrets.token_hex(8)

        async def named_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers, status = MutableHeaders(scope=message), message["status"]
                headers["X-Request-Id"] = name
                if status >= 400 and "X-Error-Message" not in headers:
                    reason = _PLAIN_FAULTS.get(status) or responses.get(status, "refused")
                    headers["X-Error-Message"] = reason
            await send(message)

        await self._app(scope, receive, named_send)


class RouteOnRawPath:
    """Routes see the path as it was sent: `tree/dev%2Fx/a` asks for `a` on the branch `dev/x`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102
        if scope["type"] == "http":
            scope["path"] = scope["raw_path"].decode("latin-1")
        await self._app(scope, receive, send)


class ReadBodyBeforeAnswer:
    """Reads what a refused request still sends, up to a limit, before the refusal goes out.

    Clients write a whole body before they read the answer; closing on them would show as a broken connection,
    which they try again, instead of as the reason.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102
        complete = scope["type"] != "http"

        async def watched_receive() -> Message:
            nonlocal complete
            message = await receive()
            complete = not message.get("more_body", False)
            return message

        async def patient_send(message: Message) -> None:
            left_bytes = MAX_UNREAD_BYTES
            while message["type"] == "http.response.start" and not complete and left_bytes > 0:
                left_bytes -= len((await watched_receive()).get("body", b""))
            await send(message)

        await self._app(scope, watched_receive, patient_send)
