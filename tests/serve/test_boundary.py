from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import Response
from starlette.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

from serve.api import create_app
from serve.boundary import Boundary, Metrics
from tests.serve.local import Shelf, open_local


def test_a_disconnect_after_the_answer_is_its_end_and_no_client_that_left() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await Response("done")(scope, receive, send)
        await receive()

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        pass

    metrics = Metrics()
    boundary = Boundary(app, metrics=metrics, max_body_bytes=1, send_request_id=False)
    asyncio.run(boundary({"type": "http", "headers": []}, receive, send))
    answered = {"route": "other", "status": "200"}
    assert metrics.registry.get_sample_value("hubctl_requests_total", answered) == 1


@pytest.mark.parametrize(
    ("route", "kind"),
    [
        ("/v1/images/generations", "application/json"),
        ("/v1/images/segmentations", "multipart/form-data; boundary=x"),
    ],
)
def test_a_client_that_leaves_in_its_body_is_no_fault_of_ours(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, route: str, kind: str
) -> None:
    app = create_app(*open_local(tmp_path), Shelf().lookup)
    scope: dict[str, Any] = {"type": "http", "method": "POST", "path": route, "query_string": b""}
    scope["headers"] = [(b"content-type", kind.encode())]
    messages = [{"type": "http.disconnect"}, {"type": "http.request", "body": b"--x", "more_body": True}]

    async def receive() -> Any:
        return messages.pop()

    async def send(message: Any) -> None:
        pass

    async def ask() -> None:
        await app(scope, receive, send)

    asyncio.run(ask())
    text = TestClient(app).get("/metrics").text
    assert f'hubctl_requests_total{{route="{route}",status="499"}} 1.0' in text
    assert "Traceback" not in caplog.text
