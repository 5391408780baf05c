"""npm's @huggingface/hub."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.clients.environments import FOLDER, NPM
from tests.registry_server import RegistryServer

pytestmark = pytest.mark.clients


def test_javascript(tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip(f"{NPM} needs node")
    with RegistryServer(tmp_path / "root") as registry:
        script = Path(__file__).with_name("scenarios.mjs")
        done = subprocess.run(
            [node, script, registry.endpoint, registry.token("alice"), registry.token("bob")],
            cwd=FOLDER / "npm", capture_output=True, text=True, timeout=120,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
