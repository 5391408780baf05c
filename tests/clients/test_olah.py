"""olah, a caching proxy for a Hub, between a registry and the stock library."""

from __future__ import annotations

import hashlib
import json
import random
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from huggingface_hub import HfApi

from tests.clients.environments import HUGGINGFACE_HUB, python_of
from tests.registry_server import RegistryServer, isolated_environment

pytestmark = pytest.mark.clients

DATA = random.Random(3).randbytes(60_000_000)
START_S = 30
READ = """
import hashlib, json, pathlib
from huggingface_hub import HfApi, snapshot_download
api = HfApi()
snapshot = pathlib.Path(snapshot_download("alice/style"))
print(json.dumps({
    "user": api.whoami()["name"],
    "commit": api.model_info("alice/style").sha,
    "files": sorted(api.list_repo_files("alice/style")),
    "branches": sorted(ref.name for ref in api.list_repo_refs("alice/style").branches),
    "commits": len(api.list_repo_commits("alice/style")),
    "sha256": hashlib.sha256((snapshot / "w.safetensors").read_bytes()).hexdigest(),
}))
"""


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    with RegistryServer(tmp_path_factory.mktemp("behind") / "root") as server:
        yield server


@contextmanager
def olah(registry: RegistryServer, folder: Path) -> Iterator[str]:
    """A proxy in front of the registry; its address."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    here, there = f"127.0.0.1:{port}", registry.endpoint.removeprefix("http://")
    addresses = {"hf": there, "mirror": here}
    words = [word for side, netloc in addresses.items() for word in (
        f"--{side}-scheme", "http", f"--{side}-netloc", netloc, f"--{side}-lfs-netloc", netloc,
    )]  # fmt: skip
    program = python_of("olah").with_name("olah-cli")
    command = [str(program), "--host", "127.0.0.1", "--port", str(port), "--repos-path", "repos", *words]
    with (folder / "olah.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    try:
        _wait(f"http://{here}/", process)
        yield f"http://{here}"
    finally:
        process.terminate()
        process.wait(10)


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            httpx.get(url, trust_env=False)
            return
        except httpx.TransportError:
            continue
    raise RuntimeError("olah did not start")


def test_behind_a_caching_proxy(registry: RegistryServer, tmp_path: Path) -> None:
    token = registry.token("alice")
    api = HfApi(registry.endpoint, token=token)
    api.create_repo("style")
    api.upload_file(repo_id="alice/style", path_or_fileobj=DATA, path_in_repo="w.safetensors")
    last = api.upload_file(repo_id="alice/style", path_or_fileobj=b"{}", path_in_repo="config.json")
    api.create_branch("alice/style", branch="dev")
    with olah(registry, tmp_path) as endpoint:
        for version in HUGGINGFACE_HUB:
            home = tmp_path / version
            home.mkdir()
            environment = {**isolated_environment(home, registry, token), "HF_ENDPOINT": endpoint}
            done = subprocess.run(
                [python_of(version), "-c", READ], env=environment, cwd=home,
                capture_output=True, text=True, timeout=120,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            assert json.loads(done.stdout) == {
                "user": "alice",
                "commit": last.oid,
                "files": [".gitattributes", "config.json", "w.safetensors"],
                "branches": ["dev", "main"],
                "commits": 3,
                "sha256": hashlib.sha256(DATA).hexdigest(),
            }
