from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from serve.api import create_app
from tests.serve.local import Shelf, open_local


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
