"""Which waiting calls run next. A pure function: the owner thread asks it, with the time as an argument.

A call is one client's (request's) use of a shared module. Calls of equal `group` can share a forward. The
oldest call decides the group, so no group starves; within it the oldest go first, up to a cap on rows.
Running at once and letting the next call catch the next forward would be right if calls came evenly; but
clients that ran together come back together, a moment apart. So there is a bounded wait for those that are
expected, counted from the end of the last forward: those that it answered are the ones to come. Without it
two halves would take turns for ever, each waiting while the other runs. Clients that arrive together are not
known before they call; so a client's first call waits for them too, a moment that its forward hardly shows.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Waiting:
    """A call that could run now."""

    ticket: int
    group: Hashable
    stage: int
    """Of a request's way: 0 what comes before the denoiser (text encoders, the VAE's encoding, and in every
    step anew the ControlNets), 1 the denoiser, 2 the VAE's decoding. Segmentation is one call, of stage 0."""
    rows: int
    max_rows: int
    """Of one forward of this module."""
    since_s: float
    gather_s: float
    """How long it may wait for clients that are expected."""
    linger_s: float
    """How long it may wait for those that nobody knows of yet, from when it came."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Thinking:
    """A client between two calls."""

    stage: int
    """Of its last call; -1 before the first."""
    group: Hashable
    """Of its last call; None before the first."""


@dataclass(frozen=True, slots=True)
class Run:
    """Run these calls in one forward."""

    tickets: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class WaitUntil:
    """Ask again at this time, or when something changes."""

    at_s: float


def choose(
    waiting: Sequence[Waiting], thinking: Iterable[Thinking], *, now_s: float, idle_since_s: float
) -> Run | WaitUntil | None:
    """Decide what the owner thread does now.

    Args:
        waiting: Calls in any order.
        thinking: Clients that may call soon.
        now_s: The time, on the clock of `since_s`.
        idle_since_s: When the last forward ended.

    Returns:
        What to run, until when to wait, or None when nothing waits.
    """
    if not waiting:
        return None
    oldest = min(waiting, key=_age)
    batch: list[Waiting] = []
    rows = 0
    for call in sorted((c for c in waiting if c.group == oldest.group), key=_age):
        # The oldest always goes, even alone above the cap: nothing else would ever make it fit.
        if not batch or rows + call.rows <= oldest.max_rows:
            batch.append(call)
            rows += call.rows
    room = rows < oldest.max_rows and len(batch) == sum(c.group == oldest.group for c in waiting)
    deadline = oldest.since_s + oldest.linger_s
    if any(expected(client, oldest) for client in thinking):
        deadline = max(deadline, max(oldest.since_s, idle_since_s) + oldest.gather_s)
    if room and now_s < deadline:
        return WaitUntil(deadline)
    return Run(tuple(call.ticket for call in batch))


def expected(client: Thinking, call: Waiting) -> bool:
    """Whether the client's next call is likely to join `call`.

    It is when its last call was of the same group (a denoising loop comes back), or when it has not reached
    this stage yet. A client past the stage, or in the loop of another shape, is not coming.
    """
    return client.group == call.group or client.stage < call.stage


def _age(call: Waiting) -> tuple[float, int]:
    return call.since_s, call.ticket
