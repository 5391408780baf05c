"""Whose request is next when several tenants wait, and who gives way in a full line. Pure.

Start-time fair queueing (Goyal, Vin, Cheng 1996): a tenant's start tag says at which virtual time its next
request is due. The least tag goes first, and its tenant is charged what the request costs. Virtual time is
the tag of the last that went; a tenant that comes starts there, so that idleness earns nothing.

Endless newcomers, each there once, would stop that clock: all would start at the present, before whoever has
been charged. So it moves on with every request, by at least its cost over the number of tenants that there
can be: what each would have got meanwhile at the least (the clock of WF2Q+, Bennett and Zhang 1996).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Generic, TypeVar


@dataclass(eq=False, kw_only=True, slots=True)
class Ticket:
    """A request in the line."""

    tenant: str
    cost: float
    """Above 0, in any unit that all share."""


T = TypeVar("T", bound=Ticket)


class FairLine(Generic[T]):
    """Requests that wait: each tenant's in the order they came, the tenants in equal shares of the cost."""

    def __init__(self, *, most_tenants: int) -> None:
        """Take the number of tenants that can have a request here, waiting or running, at once."""
        self._most_tenants = most_tenants
        self._line: dict[T, None] = {}  # in the order of arrival
        self._starts: dict[str, float] = {}  # of tenants that wait, or have been charged beyond the present
        self._now = 0.0

    def __len__(self) -> int:
        return len(self._line)

    def enter(self, ticket: T) -> None:
        """Add a request at its tenant's end."""
        if all(other.tenant != ticket.tenant for other in self._line):
            self._starts[ticket.tenant] = max(self._now, self._starts.get(ticket.tenant, 0.0))
        self._line[ticket] = None

    def leave(self, ticket: T) -> None:
        """Take out a request that waits no more; its tenant pays nothing for it."""
        del self._line[ticket]
        self._forget()

    def take(self) -> T:
        """Take out the next request, and charge its tenant; of equal tags the one that came first."""
        ticket = min(self._line, key=lambda other: self._starts[other.tenant])
        start = self._starts[ticket.tenant]
        self._now = max(start, self._now + ticket.cost / self._most_tenants)
        self._starts[ticket.tenant] = start + ticket.cost
        self.leave(ticket)
        return ticket

    def giving_way(self, tenant: str) -> T | None:
        """Who leaves a full line for a request of `tenant`: the newest of the tenant with most waiting.

        None if `tenant` would then have more waiting than that one.
        """
        waiting = Counter(ticket.tenant for ticket in self._line)
        most = max(waiting.values(), default=0)
        if waiting[tenant] + 1 >= most:
            return None
        return next(ticket for ticket in reversed(self._line) if waiting[ticket.tenant] == most)

    def settle(self) -> None:
        """Forget all charges, when nothing waits or runs: nobody is owed for what nobody else wanted."""
        self._starts.clear()
        self._now = 0.0

    def _forget(self) -> None:
        waiting = {ticket.tenant for ticket in self._line}
        self._starts = {
            tenant: start for tenant, start in self._starts.items() if tenant in waiting or start > self._now
        }
