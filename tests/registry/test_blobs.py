"""Files are complete or absent, whatever happens to the process that writes them."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from hubctl.errors import InputError, IntegrityError
from hubctl.registry.blobs import FileStore

_WRITER = """
import hashlib, sys
from pathlib import Path
from hubctl.registry.blobs import FileStore
store = FileStore(Path(sys.argv[1]))
number = 0
while True:
    number += 1
    piece = number.to_bytes(8, "little") * 40_000
    with store.draft() as draft:
        for start in range(0, len(piece), 16_000):
            draft.write(piece[start:start + 16_000])
        draft.publish(draft.sha256)
    print(draft.sha256, flush=True)
"""


def test_put_and_read(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    digest = store.put(b"hello")
    assert digest == hashlib.sha256(b"hello").hexdigest()
    assert store.path(digest).read_bytes() == b"hello"
    assert store.size(digest) == 5
    assert store.size("0" * 64) is None
    assert store.put(b"hello") == digest
    assert _names(tmp_path) == {digest}


@pytest.mark.parametrize(
    "digest", ["", "abc", "../" * 21 + "a", "A" * 64, "a" * 63 + "\n", "a" * 65, "/" * 64]
)
def test_only_digests_become_paths(tmp_path: Path, digest: str) -> None:
    with pytest.raises(InputError, match="not a digest"):
        FileStore(tmp_path).path(digest)


def test_a_broken_promise_leaves_nothing(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    with store.draft() as draft:
        draft.write(b"other")
        with pytest.raises(IntegrityError, match="promised sha256"):
            draft.publish_sha256("0" * 64)
    assert not _files(tmp_path)


def test_a_failed_draft_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with FileStore(tmp_path).draft() as draft:
            draft.write(b"half")
            raise RuntimeError("midway")

    with pytest.raises(RuntimeError, match="midway"):
        fail()
    assert not _files(tmp_path)


def test_a_killed_writer_leaves_no_half_file(tmp_path: Path) -> None:
    for delay_writes in range(1, 6):
        command = [sys.executable, "-c", _WRITER, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            announced = [writer.stdout.readline().strip() for _ in range(delay_writes)]
            os.kill(writer.pid, signal.SIGKILL)
        for name in _names(tmp_path):
            assert hashlib.sha256(FileStore(tmp_path).path(name).read_bytes()).hexdigest() == name
        assert set(announced) <= _names(tmp_path)
    FileStore(tmp_path).sweep()
    assert not list((tmp_path / "drafts").iterdir())


def test_many_threads_put_the_same(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    threads = [
        threading.Thread(target=lambda: [store.put(bytes([n]) * 9) for n in range(9)]) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(_names(tmp_path)) == 9
    assert len(_files(tmp_path)) == 9


def _files(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


def _names(root: Path) -> set[str]:
    return {path.parent.name + path.name for path in _files(root) if path.parent.name != "drafts"}


def test_the_names_of_all_files_and_nothing_else(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    digests = [store.put(text) for text in (b"one", b"two", b"three")]
    (tmp_path / "stray.txt").write_bytes(b"not ours")
    (tmp_path / digests[0][:2] / "stray").write_bytes(b"not ours")
    with store.draft() as draft:
        draft.write(b"not yet")
        assert list(store.digests()) == sorted(digests)
        assert list(store.drafts()) == [draft.path]


def test_touching_makes_young_and_never_makes(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    path = store.path(store.put(b"old"))
    os.utime(path, (0, 0))
    store.touch(path.parent.name + path.name)
    assert path.stat().st_mtime > 1e9
    store.touch("0" * 64)
    assert store.size("0" * 64) is None


def test_what_somebody_else_wrote_into_a_draft(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    with store.draft() as draft:
        draft.path.write_bytes(b"from elsewhere")
        assert draft.read_back() == hashlib.sha256(b"from elsewhere").hexdigest()
        assert draft.size_bytes == 14
        draft.publish(draft.sha256)
    assert store.path(draft.sha256).read_bytes() == b"from elsewhere"


def test_a_draft_that_was_taken_away_is_no_fault_of_ours(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    with store.draft() as draft:
        draft.write(b"slow")
        draft.path.unlink()
        with pytest.raises(InputError, match="took too long"):
            draft.publish(draft.sha256)
