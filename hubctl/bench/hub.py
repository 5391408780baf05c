"""The hub measured: transfers, many pullers, a full registry's answers, start-up; beside the plain ways."""

from __future__ import annotations

import hashlib
import http.client
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlencode, urlsplit

from hubctl.adapter.base_shapes import read_base_shapes
from hubctl.adapter.gate import MAX_RANK
from hubctl.adapter.layout import WEIGHTS_DIFFUSERS
from hubctl.adapter.tensors import Tensor, write_tensors
from hubctl.base_models import embedded_bases
from hubctl.bench.pullers import child, plain_server, pull_together
from hubctl.errors import InputError
from hubctl.families import detect_family
from hubctl.hub.client import Hub
from hubctl.hub.pull import pull
from hubctl.hub.push import push
from hubctl.refs import AdapterRef
from hubctl.registry import commits
from hubctl.registry.auth import create_token, opened
from hubctl.registry.blobs import FileStore
from hubctl.registry.repo import Repositories
from hubctl.settings import child_environment

BASE = "emoji-64"
MB = 1_000_000
Tell = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What to measure."""

    adapter_mb: int = 50
    repositories: int = 100_000
    pullers: int = 32
    rounds: int = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One measurement beside its yardstick; both are medians."""

    what: str
    ours: float
    unit: str
    beside: str = ""
    """What `other` measures; empty when there is nothing to compare with."""
    other: float | None = None

    @property
    def ratio(self) -> float | None:
        """Of speeds: ours over the other's."""
        if self.other is None:
            return None
        return self.other / self.ours if self.unit in ("s", "ms") else self.ours / self.other


def measure_hub(settings: Settings, tell: Tell) -> list[Row]:
    """Everything, with registries of its own in temporary folders."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="hubctl-bench-") as made:
        folder = Path(made)
        with serving(folder / "registry") as endpoint:
            hub = Hub(endpoint, create_token(folder / "registry", "alice"), "bench")
            tell(f"push and pull, {settings.adapter_mb} MB")
            rows += _transfers(hub, folder, settings)
            tell(f"{settings.pullers} pullers")
            rows.append(_pullers(hub, folder, settings))
        tell(f"filling a registry with {settings.repositories:,} repositories")
        fill(folder / "full", settings.repositories)
        with serving(folder / "full") as endpoint:
            tell("listing and searching")
            rows += _listing(endpoint, settings)
    tell("start-up")
    return [*rows, _start(settings)]


def serving(root: Path) -> AbstractContextManager[str]:
    """A registry; its address."""
    serve = ("registry", "serve", "--root", str(root), "--port", "0")
    return child(sys.executable, "-m", "hubctl", "-q", *serve)


def write_adapter(folder: Path, size_bytes: int, seed: int) -> Path:
    """An adapter for the embedded base, of about `size_bytes`; its numbers differ from seed to seed."""
    path = embedded_bases()[BASE]
    unet = read_base_shapes(path, detect_family(path))["unet"]
    targets = {
        name.removesuffix(".weight"): shape
        for name, shape in unet.items()
        if "transformer_blocks" in name and name.endswith(".weight") and len(shape) == 2
    }
    rank_bytes = 4 * sum(map(sum, targets.values()))
    if size_bytes > MAX_RANK * rank_bytes:
        raise InputError(f"an adapter of {BASE} has at most {MAX_RANK * rank_bytes // MB} MB")
    rank = max(1, size_bytes // rank_bytes)
    noise = array("f", [random.Random(seed).uniform(-0.1, 0.1) for _ in range(4096)]).tobytes()

    def tensor(*shape: int) -> Tensor:
        size = 4 * shape[0] * shape[1]
        return Tensor("F32", shape, (noise * (size // len(noise) + 1))[:size])

    tensors = {}
    for module, (out, inside) in targets.items():
        tensors[f"unet.{module}.lora_A.weight"] = tensor(rank, inside)
        tensors[f"unet.{module}.lora_B.weight"] = tensor(out, rank)
    folder.mkdir()
    write_tensors(folder / WEIGHTS_DIFFUSERS, tensors, {"format": "pt"})
    (folder / "README.md").write_text(f"---\nbase_model: hubctl/{BASE}\nlicense: cc-by-sa-4.0\n---\n")
    return folder


def fill(root: Path, count: int) -> None:
    """Put `count` repositories, each with a card and weights, into the registry in `root`."""
    create_token(root, "alice")
    with opened(root) as db:
        blobs = FileStore(root / "blobs")
        repos = Repositories(db, blobs)
        card = f"---\nbase_model: hubctl/{BASE}\ntags: [lora, text-to-image]\n---\n".encode()
        files = (
            commits.put_regular(blobs, "README.md", card),
            commits.put_regular(blobs, WEIGHTS_DIFFUSERS, b"weights"),
        )
        for start in range(0, count, 1000):
            repos.create_many("model", "alice", [f"style-{n}" for n in range(start, start + 1000)], files)


def _transfers(hub: Hub, folder: Path, settings: Settings) -> list[Row]:
    times: dict[str, list[float]] = {"copy": [], "push": [], "pull": []}
    for number in range(settings.rounds + 1):
        adapter = write_adapter(folder / f"a{number}", settings.adapter_mb * MB, number)
        ref = AdapterRef(f"alice/{adapter.name}")
        times["copy"].append(_timed(partial(_copy_and_hash, adapter / WEIGHTS_DIFFUSERS, folder / "copy")))
        times["push"].append(_timed(partial(push, hub, adapter)))
        times["pull"].append(_timed(partial(pull, hub, ref, cache=folder / "cache")))
    copy, pushed, pulled = (statistics.median(found[1:]) for found in times.values())  # the first warms up
    size = f"{settings.adapter_mb} MB adapter"
    beside = "copy + sha256"
    return [
        Row(what=f"push of a {size}", ours=pushed, unit="s", beside=beside, other=copy),
        Row(what=f"pull of a {size}", ours=pulled, unit="s", beside=beside, other=copy),
    ]


def _pullers(hub: Hub, folder: Path, settings: Settings) -> Row:
    weights = folder / "a0" / WEIGHTS_DIFFUSERS
    ours, plain = [], []
    for _ in range(settings.rounds):
        ours.append(pull_together(f"{hub.endpoint}/alice/a0/resolve/main/{weights.name}", settings.pullers))
        with plain_server(weights) as url:
            plain.append(pull_together(url, settings.pullers))
    return Row(
        what=f"{settings.pullers} pullers of one file", ours=statistics.median(ours), unit="MB/s",
        beside="a server of sendfile alone", other=statistics.median(plain),
    )  # fmt: skip


def _listing(endpoint: str, settings: Settings) -> list[Row]:
    address = urlsplit(endpoint)
    connection = http.client.HTTPConnection(str(address.hostname), address.port)

    def read(path: str) -> None:
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200, answer.status

    def ask(**query: str | int) -> float:
        path = f"/api/models?{urlencode({'limit': 100, **query})}"
        return 1000 * statistics.median(_timed(partial(read, path)) for _ in range(settings.rounds + 1))

    asked = {
        "the latest 100": ask(),
        "a name": ask(search=f"style-{settings.repositories - 1}"),
        "a name that is not there": ask(search="nowhere"),
        "a tag": ask(filter="lora"),
        "a tag that is not there": ask(filter="nowhere"),
    }
    connection.close()
    among = f"of {settings.repositories:,}"
    return [Row(what=f"{what}, {among}", ours=found, unit="ms") for what, found in asked.items()]


def _start(settings: Settings) -> Row:
    hf = Path(sys.executable).with_name("hf")
    ours, other = [], []
    for _ in range(settings.rounds):
        ours.append(_timed(lambda: _run([sys.executable, "-m", "hubctl", "--help"])))
        if hf.exists():
            other.append(_timed(lambda: _run([str(hf), "--help"])))
    return Row(
        what="hubctl --help", ours=statistics.median(ours), unit="s", beside="hf --help" if other else "",
        other=statistics.median(other) if other else None,
    )  # fmt: skip


def _copy_and_hash(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    with target.open("rb") as file:
        hashlib.file_digest(file, "sha256")


def _run(command: Sequence[str]) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=child_environment())


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def to_markdown(rows: Sequence[Row], machine: str) -> str:
    """The table, with the machine that it is about."""
    lines = [f"{machine}.", "", "| what | hubctl | beside | of its speed |", "|---|---|---|---|"]
    for row in rows:
        other = f"{row.beside}: {row.other:.3g} {row.unit}" if row.other is not None else "-"
        ratio = f"{row.ratio:.2f}" if row.ratio is not None else "-"
        lines.append(f"| {row.what} | {row.ours:.3g} {row.unit} | {other} | {ratio} |")
    return "\n".join(lines) + "\n"


def machine() -> str:
    """This machine in a few words."""
    import platform

    return f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
