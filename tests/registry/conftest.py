"""One real registry per test module, with two users."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.registry_server import RegistryServer


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    with RegistryServer(tmp_path_factory.mktemp("registry") / "root") as server:
        yield server


@pytest.fixture(scope="module")
def alice(registry: RegistryServer) -> Iterator[httpx.Client]:
    with _client(registry, registry.token("alice")) as client:
        yield client


@pytest.fixture(scope="module")
def bob(registry: RegistryServer) -> Iterator[httpx.Client]:
    with _client(registry, registry.token("bob")) as client:
        yield client


@pytest.fixture(scope="module")
def nobody(registry: RegistryServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=registry.endpoint, trust_env=False) as client:
        yield client


def _client(registry: RegistryServer, token: str) -> httpx.Client:
    headers = {"Authorization": f"Bearer {token}"}
    return httpx.Client(base_url=registry.endpoint, headers=headers, trust_env=False)
