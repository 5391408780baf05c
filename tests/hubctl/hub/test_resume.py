"""Downloads that were killed, cut off or lied to: what is whole is kept, and only the rest is asked for."""

from __future__ import annotations

import itertools
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from hubctl.errors import IntegrityError, UnavailableError
from hubctl.hub.client import Hub
from hubctl.hub.pull import pull
from hubctl.hub.push import push
from hubctl.hub.records import FileInfo, RepoInfo
from hubctl.refs import AdapterRef
from hubctl.settings import child_environment
from tests.adapters import contents, write_adapter, write_base
from tests.hubctl.hub.odd_server import CountingProxy, CuttingProxy, StallingProxy, serving
from tests.serve.waiting import until

if TYPE_CHECKING:
    from tests.registry_server import RegistryServer

BIG = "zebra.png"
"""Comes last."""
MIB = 1 << 20
_numbers = itertools.count()


class Pushed(NamedTuple):
    """An adapter with a large file beside it, here and on the registry."""

    folder: Path
    ref: AdapterRef
    commit: str
    cache: Path

    @property
    def part(self) -> Path:
        return self.cache / "adapters" / self.ref.repo_id / f".{self.commit}.part"

    @property
    def big(self) -> bytes:
        return (self.folder / BIG).read_bytes()


@pytest.fixture
def hub(registry: RegistryServer) -> Hub:
    return Hub(registry.endpoint, registry.token(f"resumer{next(_numbers)}"), "local")


@pytest.fixture
def pushed(hub: Hub, tmp_path: Path) -> Pushed:
    base = push(hub, write_base(tmp_path / "base"), kind="base").repo_id
    folder = write_adapter(tmp_path / "a", base)
    (folder / BIG).write_bytes(random.Random(1).randbytes(4 * MIB))
    done = push(hub, folder)
    return Pushed(folder, AdapterRef(done.repo_id), done.commit, tmp_path / "cache")


def through(endpoint: str, hub: Hub) -> Hub:
    return Hub(endpoint, hub.token, "proxy")


def test_a_killed_pull_goes_on_where_it_was(hub: Hub, pushed: Pushed) -> None:
    proxy = StallingProxy(hub.endpoint, BIG, after=2 * MIB + 1000)
    with serving(proxy) as endpoint:
        env = {"HUBCTL_CACHE": str(pushed.cache), "HF_ENDPOINT": endpoint, "HF_TOKEN": str(hub.token)}
        words = [sys.executable, "-m", "hubctl", "-q", "pull", str(pushed.ref)]
        process = subprocess.Popen(words, env=child_environment(**env))
        partial = pushed.part / BIG
        until(lambda: partial.exists() and partial.stat().st_size == 2 * MIB)
        process.send_signal(signal.SIGKILL)
        process.wait()
        proxy.go_on.set()
        assert not pushed.part.with_name(pushed.commit).exists()

        proxy.others.clear()
        seen: list[tuple[int, int]] = []
        pulled = pull(
            through(endpoint, hub), pushed.ref, cache=pushed.cache, progress=lambda *n: seen.append(n)
        )
    assert proxy.ranges == [None, f"bytes={2 * MIB}-"]
    assert proxy.others == []
    assert contents(pulled.path) == contents(pushed.folder)
    total = sum(map(len, contents(pushed.folder).values()))
    assert seen[-1] == (total, total)
    assert not pushed.part.exists()


def test_what_arrived_before_the_registry_went_is_kept(hub: Hub, pushed: Pushed) -> None:
    with (
        serving(CuttingProxy(hub.endpoint, BIG, [MIB + 5, 0, 0])) as endpoint,
        pytest.raises(UnavailableError),
    ):
        pull(through(endpoint, hub), pushed.ref, cache=pushed.cache)
    assert pushed.big.startswith((pushed.part / BIG).read_bytes())
    assert (pushed.part / BIG).stat().st_size >= MIB
    assert contents(pull(hub, pushed.ref, cache=pushed.cache).path) == contents(pushed.folder)


@pytest.mark.parametrize(
    ("left", "asked"),
    [
        (b"x" * MIB, [3 * MIB, 4 * MIB]),  # wrong: the rest first, then all of it
        (b"x" * 5 * MIB, [4 * MIB]),  # longer than the file
        (b"x" * 4 * MIB, [4 * MIB]),  # as long, and wrong
        (None, []),  # whole
    ],
)
def test_what_lies_there_is_only_kept_if_it_is_the_file(
    hub: Hub, pushed: Pushed, left: bytes | None, asked: list[int]
) -> None:
    pushed.part.mkdir(parents=True)
    (pushed.part / BIG).write_bytes(pushed.big if left is None else left)
    (pushed.part / "of another commit.png").write_bytes(b"stale")
    proxy = CountingProxy(hub.endpoint)
    with serving(proxy) as endpoint:
        pulled = pull(through(endpoint, hub), pushed.ref, cache=pushed.cache)
    assert proxy.of(BIG) == asked
    assert contents(pulled.path) == contents(pushed.folder)


def test_a_registry_that_sends_no_parts_is_read_from_the_start(hub: Hub, pushed: Pushed) -> None:
    pushed.part.mkdir(parents=True)
    (pushed.part / BIG).write_bytes(pushed.big[: MIB + 3])
    proxy = CountingProxy(hub.endpoint)

    def without_parts(request: object) -> None:
        headers = request.headers  # type: ignore[attr-defined]
        del headers["Range"]
        proxy(request)  # type: ignore[arg-type]

    with serving(without_parts) as endpoint:
        pulled = pull(through(endpoint, hub), pushed.ref, cache=pushed.cache)
    assert proxy.of(BIG) == [4 * MIB]
    assert contents(pulled.path) == contents(pushed.folder)


def test_a_file_without_a_hash_is_not_asked_for(tmp_path: Path) -> None:
    promise = FileInfo(size_bytes=3, sha256=None, git_sha1=None)
    info = RepoInfo(
        repo_id="a/b", revision="main", commit="0" * 40, files={"x.txt": promise}, card={}, task=None,
        tags=(), private=False, updated=None,
    )  # fmt: skip
    with pytest.raises(IntegrityError, match="states no hash"):
        Hub("http://127.0.0.1:9", None, "nobody").download(info, "x.txt", tmp_path / "x.txt")
    assert not (tmp_path / "x.txt").exists()


def test_wrong_bytes_do_not_stay(hub: Hub, pushed: Pushed, registry: RegistryServer) -> None:
    for blob in registry.root.rglob("*"):
        if blob.is_file() and blob.stat().st_size == 4 * MIB and blob.read_bytes() == pushed.big:
            blob.chmod(0o644)
            blob.write_bytes(b"x" * 4 * MIB)
    with pytest.raises(IntegrityError):
        pull(hub, pushed.ref, cache=pushed.cache)
    assert not pushed.part.exists()
    assert not pushed.part.with_name(pushed.commit).exists()
