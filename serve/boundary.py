"""Around every request: its id, the cap on its body, its count and duration, and the last net for faults."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Mapping

import prometheus_client as prometheus
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.engine.requests import EngineInfo
from serve.schema import Fault, error_body

log = logging.getLogger(__name__)

HEADER = "x-request-id"
CLIENT_GONE = 499
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SCOPE_KEY = "hubctl.request_id"
_BUCKETS_S = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


def request_id_of(scope: Scope) -> str:
    """The id that `Boundary` gave to the request."""
    request_id: str = scope[_SCOPE_KEY]
    return request_id


class Metrics:
    """Counts for Prometheus. Labels are routes and bases only: no name of an adapter, no prompt."""

    def __init__(self) -> None:
        self.registry = prometheus.CollectorRegistry()
        self.requests = prometheus.Counter(
            "hubctl_requests", "Requests answered.", ["route", "status"], registry=self.registry
        )
        self.seconds = prometheus.Histogram(
            "hubctl_request_seconds",
            "From arrival to answer.",
            ["route"],
            buckets=_BUCKETS_S,
            registry=self.registry,
        )
        self.images = prometheus.Counter("hubctl_images", "Images generated.", registry=self.registry)
        self.ready = prometheus.Gauge(
            "hubctl_base_ready", "1 when an engine of the base answers.", ["base"], registry=self.registry
        )
        self.rows_free = prometheus.Gauge(
            "hubctl_engine_rows_free", "Free rank rows of one engine.", ["base"], registry=self.registry
        )
        self.queued = prometheus.Gauge(
            "hubctl_engine_queued", "Requests waiting in one engine.", ["base"], registry=self.registry
        )
        self.running = prometheus.Gauge(
            "hubctl_engine_running", "Requests under way in one engine.", ["base"], registry=self.registry
        )

    def observe(self, infos: Mapping[str, EngineInfo | None]) -> None:
        """Take over the engines' state."""
        for name, info in infos.items():
            self.ready.labels(name).set(info is not None)
            if info is not None:
                self.rows_free.labels(name).set(info.rows_free)
                self.queued.labels(name).set(info.queued)
                self.running.labels(name).set(info.running)


class Boundary:
    """ASGI middleware around all routes; see the module."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, max_body_bytes: int, send_request_id: bool) -> None:
        self._app, self._metrics = app, metrics
        self._max_body_bytes, self._send_request_id = max_body_bytes, send_request_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        asked = Headers(scope=scope).get(HEADER, "")
        request_id = scope[_SCOPE_KEY] = asked if _ID.fullmatch(asked) else uuid.uuid4().hex
        started_s = time.monotonic()
        status, left = 0, False

        async def tracked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if self._send_request_id:
                    MutableHeaders(scope=message)[HEADER] = request_id
            await send(message)

        async def watched() -> Message:
            nonlocal left
            message = await receive()
            left = left or (message["type"] == "http.disconnect" and not status)  # every answer ends in one
            return message

        try:
            try:
                await self._app(scope, self._capped(watched), tracked)
            except ClientDisconnect:  # in the middle of its body: nobody is there to be told
                pass
            except Exception as error:
                if status:  # the answer is on its way: nothing can be added to it
                    raise
                await self._apologise(error, request_id)(scope, receive, tracked)
        except asyncio.CancelledError:
            status = CLIENT_GONE
            raise
        finally:
            status = CLIENT_GONE if left else status
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.seconds.labels(route).observe(time.monotonic() - started_s)

    def _capped(self, receive: Receive) -> Receive:
        taken_bytes = 0

        async def capped() -> Message:
            nonlocal taken_bytes
            message = await receive()
            taken_bytes += len(message.get("body", b""))
            if taken_bytes > self._max_body_bytes:
                # Starlette's own class: FastAPI turns any other one raised while it reads into a vague 400.
                raise HTTPException(413, f"the body is larger than {self._max_body_bytes:,} bytes")
            return message

        return capped

    def _apologise(self, error: Exception, request_id: str) -> JSONResponse:
        if isinstance(error, TimeoutError):
            fault = Fault(504, "server_error", "timeout")
            return JSONResponse(error_body("the request took too long", fault, request_id), 504)
        # Details stay in the log: a stranger learns nothing of files or code from an answer.
        log.error("request %s failed", request_id, exc_info=error)
        fault = Fault(500, "server_error", "internal_error")
        message = f"internal error; the server's log tells more about request {request_id}"
        return JSONResponse(error_body(message, fault, request_id), 500)
