"""Pushes whose client or registry is killed at ten points: nothing breaks, and the next goes through."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.killed import POINTS, User, look, pulled, spread, write_folder
from tests.faults.tap import Tap
from tests.registry_server import RegistryServer


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    with RegistryServer(tmp_path_factory.mktemp("kept") / "root") as server:
        yield server


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("files") / "line-art")


@pytest.fixture(scope="module")
def moments(registry: RegistryServer, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> int:
    """How many moments on the wire a whole push has."""
    user = User(tmp_path_factory.mktemp("counter") / "home", registry, registry.token("counter"))
    tap = Tap(registry.endpoint)
    with tap.open() as endpoint:
        user.run("push", "--private", folder, endpoint=endpoint)
    return tap.moments


@pytest.mark.parametrize("point", range(POINTS))
def test_the_client(point: int, moments: int, registry: RegistryServer, folder: Path, tmp_path: Path) -> None:
    user = User(tmp_path / "home", registry, registry.token(f"pusher{point}"))
    victims: list[subprocess.Popen[str]] = []
    tap = Tap(registry.endpoint, spread(moments, point), lambda: victims[0].kill())
    with tap.open() as endpoint:
        victims.append(user.start("push", "--private", folder, endpoint=endpoint))
        victims[0].communicate(timeout=60)
    look(registry)
    assert victims[0].returncode == -9
    repo = user.run("push", "--private", folder, "-q")
    look(registry)
    pulled(user, repo, folder)


@pytest.fixture(scope="module")
def changes(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, int]:
    """How often a new registry touches its disk when it starts, and while a folder is pushed to it."""
    found = []
    for pushed in (False, True):
        root = tmp_path_factory.mktemp("counted") / "root"
        with RegistryServer(root, killing_at=0) as registry:
            user = User(root.with_name("home"), registry, registry.token("counter"))
            if pushed:
                user.run("push", "--private", folder)
        found.append(int(root.with_name("root.changes").read_text()))
    return found[0], found[1] - found[0]


@pytest.mark.parametrize("point", range(POINTS))
def test_the_registry(point: int, changes: tuple[int, int], folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    start, push = changes
    with RegistryServer(root, killing_at=start + spread(push, point)) as registry:
        user = User(tmp_path / "home", registry, registry.token("alice"))
        victim = user.start("push", "--private", folder)
        _, said = victim.communicate(timeout=60)
        assert registry.stop() == -9
    assert "Traceback" not in said, said
    with RegistryServer(root) as again:
        look(again)
        user = User(tmp_path / "home", again, user.token)
        repo = user.run("push", "--private", folder, "-q")
        look(again)
        pulled(user, repo, folder)


@pytest.mark.parametrize("point", range(POINTS))
def test_a_dropped_connection(
    point: int, moments: int, registry: RegistryServer, folder: Path, tmp_path: Path
) -> None:
    """One connection breaks, and only that: the push goes on by itself."""

    def cut() -> None:
        raise ConnectionResetError

    user = User(tmp_path / "home", registry, registry.token(f"dropped{point}"))
    with Tap(registry.endpoint, spread(moments, point), cut).open() as endpoint:
        repo = user.run("push", "--private", folder, "-q", endpoint=endpoint)
    look(registry)
    pulled(user, repo, folder)
