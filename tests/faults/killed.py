"""What the tests of killed processes share: the points, the commands, and the look at what is left."""

from __future__ import annotations

import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from hubctl.hub.client import Hub
from hubctl.hub.pull import pull
from hubctl.refs import AdapterRef
from hubctl.registry import fsck
from hubctl.registry.auth import opened
from hubctl.registry.blobs import FileStore
from hubctl.settings import child_environment
from tests.adapters import contents, write_adapter, write_base
from tests.registry_server import RegistryServer

POINTS = 10
HUBCTL = (sys.executable, "-m", "hubctl")
REPOSITORY = Path(__file__).parent.parent.parent


def spread(total: int, point: int) -> int:
    """The moment, of `total`, that `point` of `POINTS` stands for; evenly over the whole course."""
    assert total >= POINTS, total
    return 1 + (2 * point + 1) * total // (2 * POINTS)


@dataclass(frozen=True, slots=True)
class User:
    """Somebody with a home of their own and nothing on the registry: each has to send every byte."""

    home: Path
    registry: RegistryServer
    token: str

    def start(
        self, *words: str | Path, endpoint: str = "", before: tuple[str, ...] = HUBCTL
    ) -> subprocess.Popen[str]:
        """Start `hubctl WORDS`."""
        self.home.mkdir(exist_ok=True)
        return subprocess.Popen(
            [*before, *map(str, words)], env=self._environment(endpoint), cwd=REPOSITORY,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(self, *words: str | Path, endpoint: str = "", before: tuple[str, ...] = HUBCTL) -> str:
        """Run `hubctl WORDS` to its end, which must be a good one."""
        process = self.start(*words, endpoint=endpoint, before=before)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        return out.strip()

    def _environment(self, endpoint: str) -> dict[str, str]:
        return child_environment(
            HOME=str(self.home),
            HF_HOME=str(self.home / "hf"),
            HUBCTL_HOME=str(self.home / "hubctl"),
            HF_ENDPOINT=endpoint or self.registry.endpoint,
            HF_TOKEN=self.token,
        )


def write_folder(path: Path) -> Path:
    """An adapter with two megabytes beside it, for a base on this disk."""
    write_adapter(path, str(write_base(path.with_name("base"))))
    (path / "samples.png").write_bytes(random.Random(0).randbytes(2 << 20))
    return path


def look(registry: RegistryServer) -> None:
    """The registry is sound, whatever was done to it."""
    with opened(registry.root, must_exist=True) as db:
        stores = FileStore(registry.root / "blobs"), FileStore(registry.root / "xorbs")
        assert list(fsck.check(db, *stores, contents=True)) == []


def pulled(user: User, repo: str, folder: Path) -> None:
    """What the registry has under the name is the folder, byte by byte; asked for without another process."""
    hub = Hub(user.registry.endpoint, user.token, "local")
    path = pull(hub, AdapterRef.parse(repo), cache=user.home / "hubctl" / "cache").path
    assert contents(path) == contents(folder)
    assert not [p.name for p in path.parent.iterdir() if p.name.endswith(".part")]
