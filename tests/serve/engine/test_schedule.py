from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.engine.schedule import Run, Thinking, Waiting, WaitUntil, choose, expected


def call(
    ticket: int,
    group: str = "a",
    *,
    rows: int = 2,
    since_s: float = 0.0,
    stage: int = 1,
    max_rows: int = 8,
    gather_s: float = 0.01,
    linger_s: float = 0.0,
) -> Waiting:
    return Waiting(
        ticket=ticket,
        group=group,
        stage=stage,
        rows=rows,
        max_rows=max_rows,
        since_s=since_s,
        gather_s=gather_s,
        linger_s=linger_s,
    )


def test_nothing_waits() -> None:
    assert choose([], [Thinking(stage=1, group="a")], now_s=1.0, idle_since_s=0.0) is None


@pytest.mark.parametrize(
    ("waiting", "runs"),
    [
        pytest.param([call(1), call(2)], (1, 2), id="those that fit run together"),
        pytest.param([call(2, since_s=2), call(1, "b", since_s=1)], (1,), id="the oldest decides the group"),
        pytest.param([call(2, since_s=2), call(1, since_s=1)], (1, 2), id="oldest first"),
        pytest.param([call(i) for i in range(6)], (0, 1, 2, 3), id="not more rows than the cap"),
        pytest.param(
            [call(1, rows=5), call(2, rows=5), call(3, rows=3)], (1, 3), id="a smaller one fills up"
        ),
        pytest.param([call(1, rows=20), call(2)], (1,), id="one above the cap runs alone"),
        pytest.param([call(2), call(1)], (1, 2), id="equal times go by ticket"),
    ],
)
def test_what_runs(waiting: list[Waiting], runs: tuple[int, ...]) -> None:
    assert choose(waiting, [], now_s=5.0, idle_since_s=0.0) == Run(runs)


@pytest.mark.parametrize(
    ("client", "comes"),
    [
        pytest.param(Thinking(stage=1, group="a"), True, id="ran in this group"),
        pytest.param(Thinking(stage=-1, group=None), True, id="has just begun"),
        pytest.param(Thinking(stage=0, group="text"), True, id="one stage before"),
        pytest.param(Thinking(stage=1, group="b"), False, id="another shape"),
        pytest.param(Thinking(stage=2, group="vae"), False, id="is past it"),
    ],
)
def test_who_is_expected(client: Thinking, comes: bool) -> None:
    assert expected(client, call(1)) is comes
    decision = choose([call(1)], [client], now_s=0.005, idle_since_s=0.0)
    assert decision == (WaitUntil(0.01) if comes else Run((1,)))


def test_the_wait_is_bounded() -> None:
    client = Thinking(stage=1, group="a")
    assert choose([call(1)], [client], now_s=0.0101, idle_since_s=0.0) == Run((1,))


def test_who_waited_through_a_forward_waits_for_those_that_it_answered() -> None:
    client = Thinking(stage=1, group="a")
    assert choose([call(1)], [client], now_s=5.0, idle_since_s=4.995) == WaitUntil(4.995 + 0.01)
    assert choose([call(1)], [client], now_s=5.0, idle_since_s=4.98) == Run((1,))


def test_who_has_just_come_waits_a_moment_for_those_that_nobody_knows_of() -> None:
    new = call(1, since_s=1.0, linger_s=0.004)
    assert choose([new], [], now_s=1.003, idle_since_s=0.0) == WaitUntil(1.0 + 0.004)
    assert choose([new], [], now_s=1.004, idle_since_s=0.0) == Run((1,))
    # Counted from when it came: who has waited through a forward has waited long enough.
    assert choose([new], [], now_s=1.1, idle_since_s=1.1) == Run((1,))
    expects_more = choose([new], [Thinking(stage=0, group="text")], now_s=1.003, idle_since_s=0.0)
    assert expects_more == WaitUntil(1.0 + 0.01)


def test_a_full_batch_does_not_wait() -> None:
    client = Thinking(stage=1, group="a")
    full = [call(i, linger_s=0.005) for i in range(4)]
    assert choose(full, [client], now_s=0.0, idle_since_s=0.0) == Run((0, 1, 2, 3))
    leaves_one_behind = [call(1, rows=5), call(2, rows=5)]
    assert choose(leaves_one_behind, [client], now_s=0.0, idle_since_s=0.0) == Run((1,))


_CALLS = st.lists(
    st.tuples(
        st.sampled_from("abc"), st.integers(1, 12), st.floats(0, 1), st.integers(0, 2), st.floats(0, 1)
    ),
    min_size=1,
    max_size=20,
)
_CLIENTS = st.lists(st.builds(Thinking, stage=st.integers(-1, 2), group=st.sampled_from([None, *"abc"])))


@given(calls=_CALLS, clients=_CLIENTS, now_s=st.floats(1, 2), idle_since_s=st.floats(0, 1))
def test_every_decision_is_sound(
    calls: list[tuple[str, int, float, int, float]],
    clients: list[Thinking],
    now_s: float,
    idle_since_s: float,
) -> None:
    waiting = [
        call(i, group, rows=rows, since_s=since_s, stage=stage, linger_s=linger_s)
        for i, (group, rows, since_s, stage, linger_s) in enumerate(calls)
    ]
    oldest = min(waiting, key=lambda c: (c.since_s, c.ticket))
    decision = choose(waiting, clients, now_s=now_s, idle_since_s=idle_since_s)
    if isinstance(decision, WaitUntil):
        gathered_s = max(oldest.since_s, idle_since_s) + oldest.gather_s
        lingered_s = oldest.since_s + oldest.linger_s
        comes = any(expected(client, oldest) for client in clients)
        assert now_s < decision.at_s <= (max(gathered_s, lingered_s) if comes else lingered_s)
        return
    assert isinstance(decision, Run)
    batch = [waiting[ticket] for ticket in decision.tickets]
    assert batch[0] == oldest
    assert {c.group for c in batch} == {oldest.group}
    assert len(batch) == 1 or sum(c.rows for c in batch) <= oldest.max_rows


@given(
    arrivals=st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 9)), min_size=1, max_size=40),
    clients=_CLIENTS,
)
def test_no_call_starves(arrivals: list[tuple[str, int]], clients: list[Thinking]) -> None:
    """However many newer calls come, a call waits for no more forwards than calls came before it."""
    waiting: dict[int, Waiting] = {}
    coming = iter(enumerate(arrivals))
    ran_at: dict[int, int] = {}
    now_s, idle_since_s, forwards = 0.0, 0.0, 0
    while len(ran_at) < len(arrivals):
        for ticket, (group, rows) in itertools.islice(coming, 2):
            waiting[ticket] = call(ticket, group, rows=rows, since_s=now_s)
        decision = choose(list(waiting.values()), clients, now_s=now_s, idle_since_s=idle_since_s)
        if isinstance(decision, WaitUntil):
            now_s = decision.at_s
            decision = choose(list(waiting.values()), clients, now_s=now_s, idle_since_s=idle_since_s)
        assert isinstance(decision, Run)
        # A forward always takes the oldest: whoever waits has only so many in front.
        assert min(waiting) in decision.tickets
        for ticket in decision.tickets:
            del waiting[ticket]
            ran_at[ticket] = forwards
        forwards += 1
        idle_since_s = now_s = now_s + 0.1
    assert all(at <= ticket for ticket, at in ran_at.items())


@given(
    before=st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 9)), max_size=10),
    coming=st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 9)), min_size=1, max_size=5),
    a_forward=st.integers(1, 6),
    clients=_CLIENTS,
)
def test_a_call_does_not_starve_while_other_groups_keep_coming(
    before: list[tuple[str, int]],
    coming: list[tuple[str, int]],
    a_forward: int,
    clients: list[Thinking],
) -> None:
    """It waits for one forward of each older call at most, and one gathering before each."""
    calls = [*before, ("mine", 1)]
    waiting = [call(i, group, rows=rows) for i, (group, rows) in enumerate(calls)]
    others = itertools.cycle(coming)
    tickets = itertools.count(len(calls))
    now_s, idle_since_s, forwards, forward_s = 0.0, 0.0, 0, 0.1
    while any(c.group == "mine" for c in waiting):
        decision = choose(waiting, clients, now_s=now_s, idle_since_s=idle_since_s)
        if isinstance(decision, WaitUntil):
            now_s = decision.at_s
            decision = choose(waiting, clients, now_s=now_s, idle_since_s=idle_since_s)
        assert isinstance(decision, Run)
        waiting = [c for c in waiting if c.ticket not in decision.tickets]
        forwards += 1
        idle_since_s = now_s = now_s + forward_s
        waiting += [
            call(next(tickets), group, rows=rows, since_s=now_s)
            for group, rows in itertools.islice(others, a_forward)
        ]
    assert forwards <= len(calls)
    assert now_s <= len(calls) * (forward_s + 0.01) + 1e-9
