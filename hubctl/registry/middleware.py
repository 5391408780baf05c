"""What happens around every request: its name, its raw path, the rest of its body, the caller's rate."""

from __future__ import annotations

import secrets
import time
from http.client import responses

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hubctl.errors import HubctlError
from hubctl.registry.accounts import Accounts
from hubctl.registry.auth import bearer_token
from hubctl.registry.limits import WINDOW_S, Windows

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


class LimitRate:
    """Refuses requests of callers that had too many, and tells all of them how many they have left.

    Callers are users, or addresses where there is no good token: guessing tokens makes nobody a new caller.
    """

    # Their addresses are signed, or belong to a token of their own, and were asked for by a counted request.
    _FREE = ("/lfs/", "/xet/", "/healthz")

    def __init__(self, app: ASGIApp, *, accounts: Accounts, quota: int) -> None:
        self._app = app
        self._accounts = accounts
        self._windows = Windows(quota)
        self._started_s = time.monotonic()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102
        if scope["type"] != "http" or scope["path"].startswith(self._FREE):
            await self._app(scope, receive, send)
            return
        caller = await run_in_threadpool(self._caller, scope)
        verdict = self._windows.take(caller, time.monotonic() - self._started_s)
        told = {
            "RateLimit": f'"api";r={verdict.remaining};t={verdict.reset_s}',
            "RateLimit-Policy": f'"fixed window";"api";q={self._windows.quota};w={WINDOW_S}',
        }
        if not verdict.allowed:
            message = f"too many requests: {self._windows.quota} in {WINDOW_S} s are allowed"
            told |= {"Retry-After": str(verdict.reset_s), "X-Error-Message": message}
            await JSONResponse({"error": message}, status_code=429, headers=told)(scope, receive, send)
            return

        async def telling_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(told)
            await send(message)

        await self._app(scope, receive, telling_send)

    def _caller(self, scope: Scope) -> str:
        try:
            if token := bearer_token(Headers(scope=scope).get("authorization")):
                return f"user {self._accounts.caller(token).user}"
        except HubctlError:
            pass  # the route itself will say so
        return f"address {scope['client'][0]}" if scope.get("client") else "nobody"
