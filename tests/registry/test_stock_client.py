"""The stock client, with nothing set but the address and a token."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.registry_server import RegistryServer, isolated_environment

SCENARIOS = (
    "uploads_and_downloads_a_folder",
    "compares_checksums",
    "changes_files_step_by_step",
    "names_revisions_with_slashes",
    "finds_models",
    "hides_moves_and_deletes",
    "is_told_what_is_wrong",
    "keeps_datasets_and_spaces_apart",
    "ignores_what_gitignore_says",
    "sends_large_files_without_xet",
    "follows_pages",
    "makes_histories_smaller",
    "duplicates_and_counts",
)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_stock_client(scenario: str, registry: RegistryServer, tmp_path: Path) -> None:
    play(scenario, registry, tmp_path)


def test_large_files_in_parts(tmp_path: Path) -> None:
    with RegistryServer(tmp_path / "root", "--part-size", "1MB") as registry:
        play("sends_large_files_in_parts", registry, tmp_path)
        assert not list((registry.root / "blobs" / "drafts").iterdir())


def test_chunks_sent_before_are_not_sent_again(registry: RegistryServer, tmp_path: Path) -> None:
    def stored_bytes() -> int:
        return sum(path.stat().st_size for path in (registry.root / "xorbs").rglob("*") if path.is_file())

    play("refers_to_chunks_it_sent_before", registry, tmp_path)
    before = stored_bytes()
    play("refers_to_chunks_it_sent_before", registry, tmp_path)
    assert 0 < stored_bytes() - before < 200_000
    # What the client remembers of this user's uploads must not break those of another user of the same home.
    play("refers_to_chunks_it_sent_before", registry, tmp_path, user="bob")


def test_chunks_that_the_registry_lost_are_sent_again(registry: RegistryServer, tmp_path: Path) -> None:
    play("refers_to_chunks_it_sent_before", registry, tmp_path)
    for path in (registry.root / "xorbs").rglob("*"):
        if path.is_file():
            path.unlink()
    with pytest.raises(AssertionError, match="start the upload again"):
        play("refers_to_chunks_it_sent_before", registry, tmp_path)
    play("refers_to_chunks_it_sent_before", registry, tmp_path)


def test_hf_command_line(registry: RegistryServer, tmp_path: Path) -> None:
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "README.md").write_text("---\ntags: [lora]\n---\n")
    (tmp_path / "lora" / "w.safetensors").write_bytes(bytes(range(256)) * 5000)
    environment = isolated_environment(tmp_path, registry, registry.token("carol"))

    def hf(*arguments: str) -> str:
        command = [str(Path(sys.executable).parent / "hf"), *arguments]
        done = subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "carol" in hf("auth", "whoami")
    hf("upload", "carol/lora", "lora")
    hf("repos", "tag", "create", "carol/lora", "v1")
    assert "carol/lora" in hf("repos", "list", "--quiet")
    hf("repos", "duplicate", "carol/lora", "carol/copy")
    assert "carol/lora" in hf("models", "list", "--author", "carol", "--quiet")
    hf("download", "carol/lora", "--revision", "v1", "--local-dir", "back")
    assert (tmp_path / "back" / "w.safetensors").read_bytes() == bytes(range(256)) * 5000
    hf("repos", "delete", "carol/lora", "--yes")


def play(
    scenario: str,
    registry: RegistryServer,
    home: Path,
    *,
    user: str = "alice",
    python: str | Path = sys.executable,
) -> None:
    environment = isolated_environment(home, registry, registry.token(user))
    script = Path(__file__).with_name("stock_scenarios.py")
    command = [str(python), str(script), scenario, registry.token("bob")]
    done = subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-6000:]
