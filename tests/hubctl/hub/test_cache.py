"""What goes when room is needed: decided without a disk, then done on one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st

from hubctl.errors import NotFoundError
from hubctl.hub.cache import GRACE_S, Entry, entries, evict, lease, make_room, matching, set_pin, to_evict
from hubctl.refs import AdapterRef

NOW_S = 1e9
LONG_AGO_S = NOW_S - 10 * GRACE_S


def entry(name: str, size: int, used_s: float = LONG_AGO_S, *, pinned: bool = False) -> Entry:
    return Entry(
        kind="adapter", repo_id="a/b", commit=name, path=Path(name), size_bytes=size, used_s=used_s,
        pinned=pinned, whole=True,
    )  # fmt: skip


A, B, C = entry("a", 10, 1), entry("b", 20, 2), entry("c", 30, 3)


@pytest.mark.parametrize(
    ("found", "quota", "gone"),
    [
        ([A, B, C], 60, []),
        ([A, B, C], 59, [A]),
        ([C, B, A], 30, [A, B]),
        ([A, B, C], 0, [A, B, C]),
        ([A, entry("b", 20, 2, pinned=True), C], 30, [A, C]),
        ([A, entry("new", 20, NOW_S - 1)], 0, [A]),
        ([], 0, []),
    ],
)
def test_the_longest_unused_goes(found: list[Entry], quota: int, gone: list[Entry]) -> None:
    assert to_evict(found, quota, NOW_S) == gone


entry_lists = st.lists(
    st.builds(entry, st.uuids().map(str), st.integers(0, 100), st.floats(0, NOW_S), pinned=st.booleans()),
    max_size=12,
)


@given(entry_lists, st.integers(0, 600), st.data())
def test_no_more_and_no_less_than_needed(found: list[Entry], quota: int, data: st.DataObject) -> None:
    held = {each.path for each in found if data.draw(st.booleans())}
    gone = to_evict(found, quota, NOW_S, held)
    kept = [each for each in found if each not in gone]
    assert not any(each.pinned or each.path in held or NOW_S - each.used_s < GRACE_S for each in gone)
    size = sum(each.size_bytes for each in kept)
    free = [e for e in kept if not e.pinned and e.path not in held and NOW_S - e.used_s >= GRACE_S]
    assert size <= quota or not free
    assert all(a.used_s <= b.used_s for a in gone for b in free)
    if gone:
        assert size + gone[-1].size_bytes > quota


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    for number, (repo, name) in enumerate([("a/x", "1" * 40), ("a/x", "2" * 40), ("b/y", ".3333.part")]):
        folder = tmp_path / "adapters" / repo / name
        folder.mkdir(parents=True)
        (folder / "w").write_bytes(b"x" * 100)
        (folder.with_name(f".{name}.json")).write_text("{}")
        os.utime(folder, (number, number))
    return tmp_path


def test_what_is_found(cache: Path) -> None:
    found = entries(cache)
    assert [(e.repo_id, e.commit[:2], e.size_bytes, e.whole) for e in found] == [
        ("b/y", "33", 100, False),
        ("a/x", "22", 100, True),
        ("a/x", "11", 100, True),
    ]
    assert [e.commit for e in matching(found, AdapterRef("a/x", "22"), cache)] == ["2" * 40]
    assert len(matching(found, AdapterRef("a/x"), cache)) == 2
    for unknown in (AdapterRef("b/y"), AdapterRef("a/x", "33")):
        with pytest.raises(NotFoundError):
            matching(found, unknown, cache)


def test_pinned_and_held_stay_and_the_next_goes_instead(cache: Path) -> None:
    first, second = sorted((e for e in entries(cache) if e.whole), key=lambda e: e.used_s)
    set_pin(first, pinned=True)
    with FileLock(second.path.with_name(f".{second.commit}.lock")):
        assert [e.commit for e in evict(cache, 200, NOW_S)] == ["3333"]
    assert {e.commit for e in entries(cache)} == {first.commit, second.commit}
    set_pin(first, pinned=False)
    assert [e.commit for e in evict(cache, 100, NOW_S)] == [first.commit]
    assert [p.name for p in (cache / "adapters/a/x").iterdir() if "1" in p.name] == [f".{first.commit}.lock"]


def test_what_a_living_process_leased_stays(cache: Path) -> None:
    first = min((e for e in entries(cache) if e.whole), key=lambda e: e.used_s)
    command = [sys.executable, "-c", LEASE, str(first.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"leased\n"
        make_room(cache, 0)
        assert [e.commit for e in entries(cache)] == [first.commit]
        process.kill()
    make_room(cache, None)
    assert len(entries(cache)) == 1
    make_room(cache, 0)  # a lease ends with its process, however that ended
    assert entries(cache) == []
    assert not list((cache / "adapters/a/x").glob("*.lease-*"))


def test_a_lease_can_be_given_back(cache: Path) -> None:
    first = min((e for e in entries(cache) if e.whole), key=lambda e: e.used_s)
    held = lease(first.path)
    assert first.commit not in [e.commit for e in evict(cache, 0, NOW_S)]
    held.release()
    assert [e.commit for e in evict(cache, 0, NOW_S)] == [first.commit]


LEASE = """
import sys
from pathlib import Path
from hubctl.hub.cache import lease
held = lease(Path(sys.argv[1]))
print("leased", flush=True)
sys.stdin.read()
"""
