"""Which processes descend from one: read from /proc, so that nothing a command started outlives it.

A server's workers may move to process groups of their own; their parent or their session still tells whose
they are. Where there is no /proc (macOS) the table is empty, and the process group has to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Entry:
    """One live process; `started` (clock ticks since boot) tells it from a later one with the same id."""

    pid: int
    parent: int
    session: int
    started: int


def read_table(proc: Path = _PROC) -> dict[int, Entry]:
    """All processes that are not yet dead, by id."""
    table = {}
    for folder in proc.glob("[0-9]*"):
        try:
            entry = parse_stat((folder / "stat").read_text(encoding="utf-8", errors="replace"))
        except OSError:  # it ended while we looked
            continue
        if entry is not None:
            table[entry.pid] = entry
    return table


def parse_stat(text: str) -> Entry | None:
    """One line of `/proc/PID/stat`; None for a zombie."""
    pid, _, rest = text.partition(" (")
    # The command's name may hold spaces and brackets itself: the last bracket closes it.
    fields = rest.rpartition(") ")[2].split()
    if fields[0] in ("Z", "X"):
        return None
    return Entry(int(pid), int(fields[1]), int(fields[3]), int(fields[19]))


def family(table: Mapping[int, Entry], leader: int) -> set[Entry]:
    """`leader` (the head of its own session) and everything it started, directly or not."""
    found = {entry.pid for entry in table.values() if entry.session == leader or entry.pid == leader}
    grown = True
    while grown:
        children = {entry.pid for entry in table.values() if entry.parent in found} - found
        found |= children
        grown = bool(children)
    return {table[pid] for pid in found}


def still_alive(table: Mapping[int, Entry], members: set[Entry]) -> set[Entry]:
    """Those of `members` that run now; their parents may have changed."""
    return {
        member for member in members if member.pid in table and table[member.pid].started == member.started
    }
