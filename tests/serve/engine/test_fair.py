"""Fairness as its definition says it, checked against counts of our own; see Goyal, Vin, Cheng 1996."""

from __future__ import annotations

import itertools
from collections import Counter, deque
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.engine.fair import FairLine, Ticket

TENANTS = 12


def ticket(tenant: str, cost: float = 1.0) -> Ticket:
    return Ticket(tenant=tenant, cost=cost)


def line_of(tickets: Iterable[Ticket]) -> FairLine[Ticket]:
    line: FairLine[Ticket] = FairLine(most_tenants=TENANTS)
    for each in tickets:
        line.enter(each)
    return line


def taken(line: FairLine[Ticket]) -> str:
    return "".join(line.take().tenant for _ in range(len(line)))


@pytest.mark.parametrize(
    ("arrivals", "order"),
    [
        pytest.param("aaa", "aaa", id="one tenant"),
        pytest.param("aaaab", "abaaa", id="one behind many"),
        pytest.param("aaabbb", "ababab", id="turns"),
        pytest.param("abcabc", "abcabc", id="already fair"),
    ],
)
def test_who_is_next(arrivals: str, order: str) -> None:
    assert taken(line_of(ticket(tenant) for tenant in arrivals)) == order


def test_work_counts_and_not_the_number_of_requests() -> None:
    large, small = [ticket("a", 4.0) for _ in range(3)], [ticket("b") for _ in range(12)]
    assert taken(line_of(large + small)) == "abbbbabbbbabbbb"


def test_idleness_earns_nothing() -> None:
    line = line_of(ticket("a") for _ in range(8))
    for _ in range(4):
        line.take()
    for _ in range(4):
        line.enter(ticket("b"))
    # b may go first now, and has no claim on the four turns before it came.
    assert taken(line) == "babababa"


def test_who_leaves_pays_nothing() -> None:
    leaving = [ticket("a", 100.0) for _ in range(3)]
    line = line_of([*leaving, ticket("a"), ticket("b"), ticket("a"), ticket("b")])
    for each in leaving:
        line.leave(each)
    assert taken(line) == "abab"


def test_charges_are_forgotten_at_rest() -> None:
    line = line_of([ticket("a", 100.0)])
    line.take()
    line.settle()
    for tenant in "abab":
        line.enter(ticket(tenant))
    assert taken(line) == "abab"


@given(costs=st.lists(st.floats(0.1, 1000), max_size=30))
def test_one_tenant_gets_the_order_of_arrival(costs: list[float]) -> None:
    tickets = [ticket("a", cost) for cost in costs]
    line = line_of(tickets)
    assert [line.take() for _ in tickets] == tickets


_EVENTS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from("abcde"), st.sampled_from([1.0, 2.0, 30.0])),
        st.just("take"),
        st.integers(0, 20),  # the one in this place leaves
    ),
    max_size=120,
)


@given(events=_EVENTS)
def test_everyone_is_taken_once_and_each_tenant_in_order(
    events: list[tuple[str, float] | str | int],
) -> None:
    """Work conserving: while anyone waits, someone is next."""
    line = line_of([])
    waiting: dict[str, deque[Ticket]] = {tenant: deque() for tenant in "abcde"}

    def take() -> None:
        got = line.take()
        assert waiting[got.tenant].popleft() is got

    for event in events:
        total = sum(map(len, waiting.values()))
        assert len(line) == total
        if event == "take":
            if total:
                take()
        elif isinstance(event, int):
            everyone = list(itertools.chain(*waiting.values()))
            if event < len(everyone):
                line.leave(everyone[event])
                waiting[everyone[event].tenant].remove(everyone[event])
        elif isinstance(event, tuple):
            new = ticket(*event)
            line.enter(new)
            waiting[new.tenant].append(new)
    while len(line):
        take()
    assert not any(waiting.values())


@given(
    numbers=st.lists(st.integers(2, 40), min_size=2, max_size=2),
    costs=st.lists(st.floats(0.1, 100), min_size=2, max_size=2),
    turns=st.integers(1, 300),
)
def test_endless_queues_get_equal_shares_whatever_their_numbers(
    numbers: list[int], costs: list[float], turns: int
) -> None:
    """The paper's theorem 1: what two that always wait have got differs by at most a request of each."""
    price = dict(zip("ab", costs, strict=True))
    line = line_of(ticket(t, price[t]) for t, n in zip("ab", numbers, strict=True) for _ in range(n))
    got: Counter[str] = Counter()
    for _ in range(turns):
        tenant = line.take().tenant
        got[tenant] += 1
        line.enter(ticket(tenant, price[tenant]))
        assert abs(got["a"] * price["a"] - got["b"] * price["b"]) <= sum(costs) * (1 + 1e-9)


@given(
    before=st.lists(st.sampled_from("abcdefg"), max_size=15),
    own=st.integers(0, 3),
    arrivals=st.lists(st.one_of(st.sampled_from("abcdefg"), st.just("stranger")), max_size=8),
)
def test_nobody_starves(before: list[str], own: int, arrivals: list[str]) -> None:
    """Whoever keeps coming, strangers that come only once among them: few go before one that waits."""
    names = (f"stranger {i}" for i in itertools.count())
    line = line_of([ticket(tenant) for tenant in before])
    for _ in range(len(before) // 2):
        line.take()
    mine = [ticket("me") for _ in range(own + 1)]
    for each in mine:
        line.enter(each)
    coming = itertools.cycle(arrivals or ["a"])
    for served in itertools.count():
        last = line.take()
        if last is mine[-1]:
            break
        assert served < 4 * TENANTS * len(mine)
        # Refill, but never with more tenants at once than the line was told of.
        for tenant in itertools.islice(coming, 3):
            if len(line) < TENANTS - 1:
                line.enter(ticket(next(names) if tenant == "stranger" else tenant))


def test_newcomers_without_end_do_not_hold_the_clock() -> None:
    line = line_of([ticket("me"), ticket("me"), ticket("stranger")])
    order = []
    for i in range(3 * TENANTS):
        order.append(line.take().tenant)
        line.enter(ticket(f"stranger {i}"))
    assert order[0] == "me"
    assert "me" in order[1:]


@pytest.mark.parametrize(
    ("waiting", "comes", "leaves"),
    [
        pytest.param("aaaa", "b", 3, id="the newest of the one with most"),
        pytest.param("aaabb", "b", None, id="an exchange that would only turn the tables"),
        pytest.param("aaaab", "b", 3, id="down to equal numbers"),
        pytest.param("aaaa", "a", None, id="one tenant alone"),
        pytest.param("abcd", "e", None, id="all have one"),
        pytest.param("aabb", "c", 3, id="of equals the newest"),
        pytest.param("", "a", None, id="no line at all"),
    ],
)
def test_who_gives_way(waiting: str, comes: str, leaves: int | None) -> None:
    tickets = [ticket(tenant) for tenant in waiting]
    assert line_of(tickets).giving_way(comes) is (None if leaves is None else tickets[leaves])


@given(arrivals=st.text("aaaaabbbcd", max_size=200), most=st.integers(4, 12))
def test_a_full_line_ends_up_shared(arrivals: str, most: int) -> None:
    """Nobody who keeps asking has less room than an equal share while another has more."""
    line, waiting = line_of([]), Counter[str]()
    for tenant in [*arrivals, *"abcd" * most]:
        if len(line) >= most:
            leaving = line.giving_way(tenant)
            if leaving is None:
                continue
            line.leave(leaving)
            waiting[leaving.tenant] -= 1
        line.enter(ticket(tenant))
        waiting[tenant] += 1
        assert len(line) == sum(waiting.values()) <= most
    assert max(waiting.values()) - min(waiting[tenant] for tenant in "abcd") <= 1
