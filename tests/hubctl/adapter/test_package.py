from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubctl.adapter.package import (
    BaseIdentity,
    Manifest,
    manifest_json,
    new_folder,
    read_manifest,
    refuse_existing,
)
from hubctl.errors import AdapterError, ConflictError, InputError


def everything(folder: Path) -> dict[str, str]:
    """Every file below `folder` and what it holds; folders that stand empty count too."""
    return {
        str(p.relative_to(folder)): p.read_text() if p.is_file() else "/" for p in sorted(folder.rglob("*"))
    }


def test_a_new_folder_is_there_only_at_the_end(tmp_path: Path) -> None:
    with new_folder(tmp_path / "deep/out") as folder:
        (folder / "a").write_text("1")
        assert not (tmp_path / "deep/out").exists()
        assert folder.parent == tmp_path / "deep"  # the same file system: moving it is one step
    assert everything(tmp_path) == {"deep": "/", "deep/out": "/", "deep/out/a": "1"}


@pytest.mark.parametrize(("umask", "folders", "files"), [(0o022, 0o755, 0o644), (0o077, 0o700, 0o600)])
def test_others_may_read_it_as_far_as_the_umask_says(
    tmp_path: Path, umask: int, folders: int, files: int
) -> None:
    before = os.umask(umask)
    try:
        with new_folder(tmp_path / "out") as made:
            (made / "inner").mkdir(mode=0o700)
            (made / "inner/weights").touch(mode=0o600)
    finally:
        os.umask(before)
    modes = [p.stat().st_mode & 0o777 for p in (tmp_path / "out", *sorted((tmp_path / "out").rglob("*")))]
    assert modes == [folders, folders, files]


@pytest.mark.parametrize("fault", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("before", [False, True])
def test_a_failure_leaves_nothing_new_and_keeps_the_old(
    tmp_path: Path, fault: type[BaseException], before: bool
) -> None:
    if before:
        (tmp_path / "out").mkdir()
        (tmp_path / "out/a").write_text("old")
    found = everything(tmp_path)

    def fail_halfway() -> None:
        with new_folder(tmp_path / "out", overwrite=True) as folder:
            (folder / "a").write_text("half")
            raise fault

    with pytest.raises(fault):
        fail_halfway()
    assert everything(tmp_path) == found


def test_overwrite_replaces_all_of_the_old(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/old").write_text("old")
    with new_folder(tmp_path / "out", overwrite=True) as folder:
        (folder / "new").write_text("new")
        assert everything(tmp_path / "out") == {"old": "old"}
    assert everything(tmp_path) == {"out": "/", "out/new": "new"}


def test_the_old_comes_back_when_the_new_cannot_take_its_place(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/old").write_text("old")
    with pytest.raises(FileNotFoundError), new_folder(tmp_path / "out", overwrite=True) as folder:
        folder.rmdir()
    assert everything(tmp_path) == {"out": "/", "out/old": "old"}


def test_what_exists_is_not_replaced_unasked(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "file").write_text("x")
    refuse_existing(tmp_path / "out", overwrite=False)  # empty: nothing to lose
    with new_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("1")
    for taken in ("out", "file"):
        with pytest.raises(ConflictError, match="exists already") as caught, new_folder(tmp_path / taken):
            pytest.fail("it began")
        assert "--overwrite" in (caught.value.hint or "")


def test_a_link_to_nothing_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to("nowhere")
    for overwrite in (False, True):
        with (
            pytest.raises(InputError, match="link to nothing"),
            new_folder(tmp_path / "out", overwrite=overwrite),
        ):
            pytest.fail("it began")


def test_what_appears_meanwhile_is_not_replaced_either(tmp_path: Path) -> None:
    with pytest.raises(ConflictError), new_folder(tmp_path / "out"):
        (tmp_path / "out").write_text("theirs")
    assert everything(tmp_path) == {"out": "theirs"}


def test_a_place_that_cannot_be_written_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write"), new_folder(tmp_path / "file/out"):
        pytest.fail("it began")


def test_relative_paths_work(tmp_path: Path) -> None:
    where = os.path.relpath(tmp_path / "out")
    with new_folder(Path(where)) as folder:
        (folder / "a").write_text("1")
    assert everything(tmp_path) == {"out": "/", "out/a": "1"}


text = st.text(max_size=8)


@given(
    st.builds(
        Manifest,
        task=text,
        base=st.builds(BaseIdentity, id=text, commit=st.none() | text, sha256=st.none() | text),
        data=st.dictionaries(text, st.integers() | text | st.none(), max_size=3),
        settings=st.dictionaries(text, st.booleans() | st.lists(text, max_size=2), max_size=3),
        versions=st.dictionaries(text, text, max_size=3),
        metrics=st.dictionaries(text, st.floats(allow_nan=False), max_size=3),
    )
)
def test_a_manifest_reads_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, manifest: Manifest
) -> None:
    folder = tmp_path_factory.mktemp("m")
    (folder / "hubctl.json").write_text(manifest_json(manifest))
    assert read_manifest(folder) == manifest


def test_without_a_manifest_there_is_none(tmp_path: Path) -> None:
    assert read_manifest(tmp_path) is None


SOUND = {"format": 1, "task": "text-to-image", "base": {"id": "hubctl/emoji-64"}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not valid JSON"),
        (b"\xff", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        ([], "is not a manifest that this hubctl knows"),
        (SOUND | {"format": 2}, "is not a manifest that this hubctl knows"),
        ({"format": 1}, "is malformed: hubctl.json: setting"),
        (SOUND | {"base": "x"}, "base is a table, not str"),
        (SOUND | {"base": {"id": 1}}, "base: id is str, not int"),
        (SOUND | {"metrics": {"a": "b"}}, r"metrics\.a is float, not str"),
        (SOUND | {"new": 1}, "unknown setting 'new'"),
    ],
)
def test_a_wrong_manifest_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    (tmp_path / "hubctl.json").write_bytes(raw)
    with pytest.raises(AdapterError, match=message):
        read_manifest(tmp_path)
