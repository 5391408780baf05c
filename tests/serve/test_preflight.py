from __future__ import annotations

import json
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from hubctl.errors import InputError, UnavailableError
from serve.config import BaseConfig, ServeConfig
from serve.preflight import check_cluster, prepare
from tests.serve.local import over_http, write_seg_base


def config(address: str) -> ServeConfig:
    return ServeConfig(bases=(BaseConfig(ref="emoji-64"),), port=0, ray_address=address)


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}"])
def test_a_cluster_that_is_not_there_is_found_before_ray_waits_for_it(form: str) -> None:
    with socket.socket() as somebody:
        somebody.bind(("127.0.0.1", 0))
        address = form.format(somebody.getsockname()[1])
        with pytest.raises(UnavailableError, match=f"no Ray cluster at {address}: ") as caught:
            prepare(config(address))
        assert caught.value.hint == "ray start --head"


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}"])
def test_whoever_speaks_grpc_may_be_a_cluster(form: str) -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    address = form.format(server.add_insecure_port("127.0.0.1:0"))
    server.start()
    try:
        assert prepare(config(address)).ray_address == address
    finally:
        server.stop(None)


def test_a_port_of_others_is_no_cluster(tmp_path: Path) -> None:
    async def other(request: Request) -> Response:
        return PlainTextResponse("hello")

    with over_http(Starlette(routes=[Route("/", other)])) as url:
        address = url.removeprefix("http://")
        with pytest.raises(UnavailableError, match=f"no Ray cluster at {address}: somebody else") as caught:
            prepare(config(address))
    assert "6379" in str(caught.value.hint)


def test_a_port_that_says_nothing_is_no_cluster() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(UnavailableError, match=f"no Ray cluster at {address}: timed out"):
            check_cluster(address, 0.05)


def test_a_base_with_more_classes_than_labels_can_name_is_found_before_ray_starts(tmp_path: Path) -> None:
    folder = write_seg_base(tmp_path / "base")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_labels": 257}))
    with pytest.raises(InputError, match=r"has 257 classes \(limit 256\)"):
        prepare(ServeConfig(bases=(BaseConfig(ref=str(folder)),), port=0))


@pytest.mark.parametrize("address", ["auto", "head", "head:port", "head:99999"])
def test_other_forms_are_left_to_ray(address: str) -> None:
    assert prepare(config(address)).ray_address == address
