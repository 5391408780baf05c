"""Registries that are dead, wrong, busy or broken: one clear error each, soon."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hubctl.errors import (
    AccessError,
    HubctlError,
    InputError,
    IntegrityError,
    OverloadedError,
    UnavailableError,
)
from hubctl.hub.client import Hub
from hubctl.hub.find import list_adapters
from hubctl.hub.pull import pull
from hubctl.hub.push import push
from hubctl.hub.undo import removed
from hubctl.refs import AdapterRef
from tests.adapters import contents, write_adapter, write_base
from tests.hubctl.hub.odd_server import CuttingProxy, always, serving

if TYPE_CHECKING:
    from tests.registry_server import RegistryServer

REF = AdapterRef("alice/line-art")
WEIGHTS = "pytorch_lora_weights.safetensors"
DEAD = "http://127.0.0.1:9"  # nobody listens on the discard port
ONE_LISTING_RETRIED_S = 25  # what huggingface_hub alone takes to give up, and more


def test_a_dead_registry_is_reported_at_once(tmp_path: Path) -> None:
    dead = Hub(DEAD, "some-token", "local")
    base = write_base(tmp_path / "base")
    start = time.monotonic()
    for call in (
        dead.whoami,
        lambda: dead.repo_info(REF),
        lambda: list_adapters(dead),
        lambda: removed(dead),
        lambda: dead.delete("alice/x"),
        lambda: pull(dead, REF, cache=tmp_path / "cache"),
        lambda: push(dead, write_adapter(tmp_path / "a", str(base)), "alice/a"),
    ):
        with pytest.raises(UnavailableError, match=r"cannot reach local \(http://127\.0\.0\.1:9\)") as caught:
            call()
        assert "hubctl registry serve" in str(caught.value.hint)
    assert time.monotonic() - start < ONE_LISTING_RETRIED_S


@pytest.mark.parametrize(
    ("status", "headers", "error"),
    [
        (401, {}, AccessError),
        (403, {"X_Error_Message": "not yours"}, AccessError),
        (429, {"Retry_After": "7"}, OverloadedError),
        (500, {}, UnavailableError),
        (503, {"Retry_After": "7"}, UnavailableError),
        (400, {"X_Error_Message": "bad request"}, InputError),
    ],
)
def test_http_answers(status: int, headers: dict[str, str], error: type[HubctlError]) -> None:
    with serving(always(status, b"{}", **headers)) as endpoint:
        hub = Hub(endpoint, "secret-token", "odd")
        with pytest.raises(error) as caught:
            hub.whoami()
    assert type(caught.value) is error
    assert "secret-token" not in f"{caught.value} {caught.value.hint}"
    if "Retry_After" in headers:
        assert getattr(caught.value, "retry_after_s", None) == 7
    if isinstance(caught.value, AccessError):
        assert caught.value.forbidden == (status == 403)


@pytest.mark.parametrize("token", ["secret-token\n", "secret-token\nmore"])
def test_a_token_that_is_no_header_is_not_quoted(token: str) -> None:
    with serving(always(200, b"{}")) as endpoint, pytest.raises(UnavailableError) as caught:
        Hub(endpoint, token, "odd").whoami()
    assert "secret-token" not in f"{caught.value} {caught.value.hint}"


def test_a_registry_that_quotes_the_token_is_not_repeated() -> None:
    answer = always(400, b"{}", X_Error_Message="what is secret-token?")
    with serving(answer) as endpoint, pytest.raises(InputError, match=r"what is \*\*\*\?"):
        Hub(endpoint, "secret-token", "odd").whoami()


def test_a_web_server_that_is_no_hub() -> None:
    with serving(always(200, b"<html>hello</html>", Content_Type="text/html")) as endpoint:
        hub = Hub(endpoint, "t0ken", "odd")
        for call in (hub.whoami, lambda: list_adapters(hub), lambda: hub.repo_info(REF)):
            with pytest.raises(UnavailableError, match="answers, but not like a hub"):
                call()


def test_a_hub_that_names_no_hash_is_not_believed(tmp_path: Path) -> None:
    model = {
        "id": "alice/line-art",
        "sha": "0" * 40,
        "siblings": [{"rfilename": WEIGHTS, "size": 4}],
    }
    with (
        serving(always(200, json.dumps(model).encode(), Content_Type="application/json")) as endpoint,
        pytest.raises(IntegrityError),
    ):
        pull(Hub(endpoint, None, "odd"), REF, cache=tmp_path)
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and p.suffix != ".lock"]


@pytest.fixture
def large(registry: RegistryServer, tmp_path: Path) -> tuple[Hub, AdapterRef, Path]:
    """An adapter of three megabytes on the registry."""
    hub = Hub(registry.endpoint, registry.token("large"), "local")
    base = write_base(tmp_path / "base")
    folder = write_adapter(tmp_path / "large", str(base), rank=64)
    (folder / "notes.txt").write_bytes(b"0123456789abcdef" * 200_000)
    return hub, AdapterRef(push(hub, folder).repo_id), folder


def test_a_broken_download_goes_on_where_it_stopped(
    large: tuple[Hub, AdapterRef, Path], tmp_path: Path
) -> None:
    hub, ref, folder = large
    proxy = CuttingProxy(hub.endpoint, "notes.txt", [1_500_000, 200_000])
    with serving(proxy) as endpoint:
        pulled = pull(Hub(endpoint, None, "odd"), ref, cache=tmp_path / "cache")
    assert contents(pulled.path) == contents(folder)
    assert proxy.ranges[0] is None
    starts = [int(str(text).removeprefix("bytes=").removesuffix("-")) for text in proxy.ranges[1:]]
    assert len(starts) == 2
    assert 0 < starts[0] <= 1_500_000
    assert starts[0] <= starts[1] <= 1_700_000


def test_a_download_that_keeps_breaking_makes_no_folder(
    large: tuple[Hub, AdapterRef, Path], tmp_path: Path
) -> None:
    hub, ref, _ = large
    proxy = CuttingProxy(hub.endpoint, "notes.txt", [1000] * 9)
    with serving(proxy) as endpoint, pytest.raises(UnavailableError):
        pull(Hub(endpoint, None, "odd"), ref, cache=tmp_path / "cache")
    assert len(proxy.ranges) == 3
    (folder,) = (tmp_path / "cache/adapters").glob("*/*")
    assert all(path.name.startswith(".") for path in folder.iterdir())
