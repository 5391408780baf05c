"""Pulls whose client or registry is killed at ten points: nothing half stays, and the next goes through."""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.adapters import contents
from tests.faults.killed import POINTS, User, look, pulled, spread, write_folder
from tests.faults.tap import Tap
from tests.registry_server import RegistryServer

REPO = "alice/line-art"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("files") / "line-art")


@pytest.fixture(scope="module")
def root(folder: Path) -> Path:
    """A registry that has the folder, and is not served yet."""
    root = folder.with_name("root")
    with RegistryServer(root) as registry:
        User(folder.with_name("home"), registry, registry.token("alice")).run("push", folder, "--repo", REPO)
    return root


@pytest.fixture(scope="module")
def registry(root: Path) -> Iterator[RegistryServer]:
    with RegistryServer(shutil.copytree(root, root.with_name("kept"))) as server:
        yield server


def killing(at: int, cache: Path) -> tuple[str, ...]:
    return (sys.executable, "-m", "tests.faults.kill_at", str(at), str(cache))


@pytest.fixture(scope="module")
def changes(registry: RegistryServer, tmp_path_factory: pytest.TempPathFactory) -> int:
    """How often a pull touches the cache."""
    home = tmp_path_factory.mktemp("counted")
    cache = home / "hubctl" / "cache"
    User(home, registry, registry.token("bob")).run("pull", REPO, before=killing(0, cache))
    return int(cache.with_name("cache.changes").read_text())


@pytest.mark.parametrize("point", range(POINTS))
def test_the_client(point: int, changes: int, registry: RegistryServer, folder: Path, tmp_path: Path) -> None:
    user = User(tmp_path, registry, registry.token("bob"))
    cache = tmp_path / "hubctl" / "cache"
    victim = user.start("pull", REPO, before=killing(spread(changes, point), cache))
    victim.communicate(timeout=60)
    assert victim.returncode == -9
    for whole in cache.glob(f"adapters/{REPO}/[0-9a-f]*"):  # a folder under its commit is never half
        assert contents(whole) == contents(folder)
    pulled(user, REPO, folder)
    look(registry)


@pytest.fixture(scope="module")
def moments(registry: RegistryServer, tmp_path_factory: pytest.TempPathFactory) -> int:
    tap = Tap(registry.endpoint)
    with tap.open() as endpoint:
        User(tmp_path_factory.mktemp("counter"), registry, registry.token("bob")).run(
            "pull", REPO, endpoint=endpoint
        )
    return tap.moments


@pytest.mark.parametrize("point", range(POINTS))
def test_the_registry(point: int, moments: int, root: Path, folder: Path, tmp_path: Path) -> None:
    with RegistryServer(root) as registry:
        user = User(tmp_path, registry, registry.token("bob"))
        tap = Tap(registry.endpoint, spread(moments, point), lambda: registry.signal(signal.SIGKILL))
        with tap.open() as endpoint:
            victim = user.start("pull", REPO, endpoint=endpoint)
            _, said = victim.communicate(timeout=60)
        assert registry.stop() == -9
    assert victim.returncode in (0, 8), said  # 0: it had all it needs
    assert "Traceback" not in said, said
    with RegistryServer(root) as again:
        look(again)
        pulled(User(tmp_path, again, user.token), REPO, folder)
