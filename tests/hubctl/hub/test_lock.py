"""What a lock file allows: decided without a registry."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubctl.errors import ConflictError, HubctlError, IntegrityError, NotFoundError
from hubctl.hub.lock import (
    LOCK,
    Locked,
    LockFile,
    changed_files,
    locked_base,
    locked_ref,
    lookup_locked,
    read_lock,
    write_lock,
)
from hubctl.hub.records import AdapterInfo
from hubctl.refs import AdapterRef, PinnedRef

COMMIT, SHA = "0123456789abcdef0123456789abcdef01234567", "b" * 64
ENTRY = Locked(
    revision="v1", commit=COMMIT, weights="w.safetensors", rank=(4, 8), files={"w.safetensors": SHA}
)
FILE = LockFile(adapters={"alice/x": ENTRY})


@pytest.mark.parametrize("revision", [None, "v1", COMMIT, COMMIT[:8]])
def test_names_of_the_locked_commit(revision: str | None) -> None:
    assert locked_ref(FILE, AdapterRef("alice/x", revision), Path(LOCK)) == PinnedRef(
        "alice/x", "v1", COMMIT, SHA
    )


@pytest.mark.parametrize(
    ("ref", "error"),
    [("alice/x@main", ConflictError), ("alice/x@" + "f" * 40, ConflictError), ("alice/y", NotFoundError)],
)
def test_other_names_are_refused(ref: str, error: type[HubctlError]) -> None:
    with pytest.raises(error):
        locked_ref(FILE, AdapterRef.parse(ref), Path(LOCK))


def registry_with(sha256: str, asked: list[AdapterRef]) -> AdapterInfo:
    (ref,) = asked
    return AdapterInfo(
        repo_id=ref.repo_id, revision=str(ref.revision), commit=COMMIT, files={}, card={}, task=None, tags=(),
        private=False, updated=None, weights_file="w.safetensors",
        pinned=PinnedRef(ref.repo_id, str(ref.revision), COMMIT, sha256),
    )  # fmt: skip


def test_a_registry_is_asked_for_the_commit_and_believed_only_with_the_hash() -> None:
    asked: list[AdapterRef] = []

    def lookup(ref: AdapterRef) -> AdapterInfo:
        asked.append(ref)
        return registry_with(SHA, asked)

    info = lookup_locked(lookup, FILE, AdapterRef("alice/x"))
    assert asked == [AdapterRef("alice/x", COMMIT)]
    assert info.pinned == PinnedRef("alice/x", "v1", COMMIT, SHA)
    with pytest.raises(IntegrityError):
        lookup_locked(lambda ref: registry_with("c" * 64, [ref]), FILE, AdapterRef("alice/x"))


@given(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
    st.text(st.characters(exclude_categories=["Cs"])),
)
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, name: str, base: str) -> None:
    path = tmp_path_factory.mktemp("lock") / LOCK
    entry = replace(ENTRY, weights=name, files={name: SHA, "README.md": "a" * 64}, base=base or None)
    lock = LockFile(adapters={"alice/x": entry, "b.ob/y-1": ENTRY})
    write_lock(path, lock)
    assert read_lock(path) == lock


def test_changed_files() -> None:
    assert changed_files({"a": "1", "b": "2", "c": "3"}, {"a": "1", "b": "9", "d": "4"}) == ["b", "c", "d"]


def test_one_commit_of_a_base_is_locked_or_none() -> None:
    lock = LockFile(
        adapters={"a/x": replace(ENTRY, base="o/b", base_commit="1" * 40), "a/y": replace(ENTRY, base="o/c")}
    )
    assert locked_base(lock, "o/b") == "1" * 40
    assert locked_base(lock, "o/c") is None
    assert locked_base(lock, "o/d") is None
    lock = LockFile(adapters={**lock.adapters, "a/z": replace(ENTRY, base="o/b", base_commit="2" * 40)})
    with pytest.raises(ConflictError, match="o/b at 2 commits, for a/x, a/z"):
        locked_base(lock, "o/b")
