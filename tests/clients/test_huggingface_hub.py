"""Four versions of huggingface_hub, and the command lines that came with them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.environments import HUGGINGFACE_HUB, python_of
from tests.registry.test_stock_client import SCENARIOS, play
from tests.registry_server import RegistryServer, isolated_environment

pytestmark = pytest.mark.clients

HEAVY = ("moves_sixty_megabytes", "moves_five_thousand_files")
LACKS = {
    "0.30.2": {"compares_checksums", "duplicates_and_counts"},
    "0.36.2": {"compares_checksums", "duplicates_and_counts"},
}
"""What a version has no call for (`verify_repo_checksums`, `duplicate_repo`)."""


@pytest.fixture(scope="module", params=HUGGINGFACE_HUB)
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def registry(version: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    with RegistryServer(tmp_path_factory.mktemp(version) / "root") as server:
        yield server


@pytest.mark.parametrize("scenario", [*SCENARIOS, *HEAVY])
def test_library(scenario: str, version: str, registry: RegistryServer, tmp_path: Path) -> None:
    if scenario in LACKS.get(version, ()):
        pytest.skip(f"huggingface_hub {version} has no such call")
    play(scenario, registry, tmp_path, python=python_of(version))


def test_command_line(version: str, registry: RegistryServer, tmp_path: Path) -> None:
    old = version.startswith("0.")
    program = python_of(version).with_name("huggingface-cli" if old else "hf")
    data = bytes(range(256)) * 5000
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "README.md").write_text("---\ntags: [lora]\n---\n")
    (tmp_path / "lora" / "w.safetensors").write_bytes(data)
    environment = isolated_environment(tmp_path, registry, registry.token("carol"))

    def run(*words: str) -> str:
        done = subprocess.run(
            [program, *words], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "carol" in run(*(["whoami"] if old else ["auth", "whoami"]))
    run("upload", "carol/lora", "lora")
    run(*(["tag"] if old else ["repo" if version < "2" else "repos", "tag", "create"]), "carol/lora", "v1")
    run("download", "carol/lora", "--revision", "v1", "--local-dir", "back")
    assert (tmp_path / "back" / "w.safetensors").read_bytes() == data
