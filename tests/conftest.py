"""What every test gets: a home of its own, this machine's network alone, a real registry when it asks."""

from __future__ import annotations

import errno
import ipaddress
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

from tests.device import DEVICE

if TYPE_CHECKING:
    from tests.registry_server import RegistryServer

# huggingface_hub reads these once, at import: they are set before anything can import it.
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="hubctl-tests-hf-")
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
for _name in ("HF_ENDPOINT", "HF_TOKEN", "HF_TOKEN_PATH", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
    os.environ.pop(_name, None)

if DEVICE == "cpu":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

# A shell starts background jobs with SIGINT ignored, and every child inherits that: a test that
# interrupts one would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)


def _stay_here(event: str, args: tuple[Any, ...]) -> None:
    """Refuse TCP connections that leave for the internet; Ray and registries on this machine are fine."""
    if event != "socket.connect" or args[0].family not in (socket.AF_INET, socket.AF_INET6):
        return
    try:
        host = ipaddress.ip_address(args[1][0].partition("%")[0])
    except ValueError:  # a name: libraries resolve names first, so this is this machine's own
        return
    if args[0].type & socket.SOCK_STREAM and not host.is_private:
        raise OSError(errno.ENETUNREACH, f"tests do not connect to {host}")


sys.addaudithook(_stay_here)

# The same examples everywhere, and no fault from a machine that is busy with something else.
settings.register_profile(
    "steady", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("steady")


@pytest.fixture(autouse=True, scope="session")
def _no_home_of_ours(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What is made once for all tests stays away from the home of whoever runs them."""
    os.environ["HUBCTL_HOME"] = str(tmp_path_factory.mktemp("hubctl-home"))


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty HUBCTL_HOME (with the cache in it) for this test and its subprocesses."""
    folder = tmp_path_factory.mktemp("for-home") / "hubctl-home"
    monkeypatch.setenv("HUBCTL_HOME", str(folder))
    ours = ("HUBCTL_CACHE", "HUBCTL_CACHE_QUOTA", "HUBCTL_TOKEN")
    for name in (*ours, "HF_ENDPOINT", "HF_TOKEN", "NO_COLOR", "COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    """A real registry, shared by the session: tests use repository names and users of their own."""
    from tests.registry_server import RegistryServer

    with RegistryServer(tmp_path_factory.mktemp("registry")) as server:
        yield server
