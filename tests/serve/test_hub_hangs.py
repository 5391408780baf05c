from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from serve.api import create_app
from tests.serve.local import Shelf, open_local
from tests.serve.test_api import GENERATIONS, Site, fault, segment, with_limits


def test_a_hub_that_hangs_holds_up_only_who_needs_it(tmp_path: Path) -> None:
    config, engines = open_local(tmp_path)
    shelf = Shelf()
    app = create_app(config, engines, shelf.lookup)
    shelf.awake.clear()

    async def work() -> None:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:

            async def ask(model: str) -> int:
                return (await client.post(GENERATIONS, json={"prompt": "x", "model": model})).status_code

            # More than asyncio's own pool of threads has, on any machine.
            waiting = [asyncio.create_task(ask(f"alice/unknown{i}")) for i in range(40)]
            while not shelf.asked:
                await asyncio.sleep(0)
            assert await asyncio.wait_for(ask("tiny"), 10) == 200
            shelf.awake.set()
            assert set(await asyncio.gather(*waiting)) == {404}

    try:
        asyncio.run(work())
    finally:
        shelf.awake.set()


def test_a_look_up_counts_against_the_time_of_a_request(tmp_path: Path) -> None:
    config, engines = open_local(tmp_path)
    site = Site(with_limits(config, timeout_s=0.05), engines)
    with site.client:
        site.shelf.awake.clear()
        asked: list[Callable[[], Any]] = [
            lambda: site.generate(model="alice/ink"),
            lambda: segment(site, "json", model="alice/ink"),
            lambda: site.client.get("/v1/models/alice/ink"),
        ]
        try:
            for ask in asked:
                assert fault(ask(), 504)["code"] == "timeout"
        finally:
            site.shelf.awake.set()
