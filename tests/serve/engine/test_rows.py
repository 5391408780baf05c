from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.engine.rows import RowLedger


def test_rows_are_given_once_and_row_zero_never() -> None:
    ledger: RowLedger[str] = RowLedger(8)
    grant = ledger.lease({"a": 3, "b": 4})
    assert grant is not None
    assert sorted(grant.rows["a"] + grant.rows["b"]) == [1, 2, 3, 4, 5, 6, 7]
    assert set(grant.new) == {"a", "b"}
    assert ledger.rows_free == 0


def test_a_resident_adapter_keeps_its_rows() -> None:
    ledger: RowLedger[str] = RowLedger(8)
    first = ledger.lease({"a": 3})
    again = ledger.lease({"a": 3})
    assert first is not None
    assert again is not None
    assert again.rows == first.rows
    assert again.new == ()
    assert ledger.leases("a") == 2


def test_the_least_recently_used_goes_first() -> None:
    ledger: RowLedger[str] = RowLedger(7)
    for key in "abc":
        ledger.lease({key: 2})
        ledger.release(key)
    ledger.lease({"a": 2})  # now b is the oldest
    ledger.release("a")
    grant = ledger.lease({"d": 2})
    assert grant is not None
    assert grant.evicted == ("b",)
    assert ledger.resident == ("c", "a", "d")


def test_a_leased_adapter_is_never_evicted() -> None:
    ledger: RowLedger[str] = RowLedger(5)
    ledger.lease({"a": 3})
    assert ledger.lease({"b": 2}) is None
    assert ledger.resident == ("a",)  # nothing changed
    ledger.release("a")
    grant = ledger.lease({"b": 2})
    assert grant is not None
    assert grant.evicted == ("a",)


def test_an_adapter_that_the_lease_itself_needs_is_not_evicted() -> None:
    ledger: RowLedger[str] = RowLedger(5)
    ledger.lease({"a": 2})
    ledger.release("a")
    ledger.lease({"b": 2})
    ledger.release("b")
    grant = ledger.lease({"a": 2, "c": 2})
    assert grant is not None
    assert grant.evicted == ("b",)


def test_more_than_there_is_is_refused() -> None:
    ledger: RowLedger[str] = RowLedger(5)
    with pytest.raises(ValueError, match="5 rows asked for, 4 exist"):
        ledger.lease({"a": 2, "b": 3})


def test_release_and_drop_refuse_nonsense() -> None:
    ledger: RowLedger[str] = RowLedger(5)
    ledger.lease({"a": 2})
    with pytest.raises(ValueError, match="is leased"):
        ledger.drop("a")
    ledger.release("a")
    with pytest.raises(ValueError, match="is not leased"):
        ledger.release("a")
    ledger.drop("a")
    assert ledger.rows_free == 4


_RANKS = {key: rank for rank, key in enumerate("abcdefgh", 1)}
_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("lease"), st.sets(st.sampled_from("abcdefgh"), min_size=1, max_size=3)),
        st.tuples(st.just("release"), st.integers(0, 20)),
        st.tuples(st.just("drop"), st.sampled_from("abcdefgh")),
    ),
    max_size=60,
)


@given(total=st.integers(2, 24), steps=_STEPS)
def test_rows_always_add_up(total: int, steps: list[tuple[str, object]]) -> None:
    ledger: RowLedger[str] = RowLedger(total)
    held: list[frozenset[str]] = []
    rows: dict[str, tuple[int, ...]] = {}
    for name, what in steps:
        leased = {key for keys in held for key in keys}
        if name == "lease":
            assert isinstance(what, set)
            wants = {key: _RANKS[key] for key in sorted(what)}
            if sum(wants.values()) > total - 1:
                continue
            grant = ledger.lease(wants)
            if grant is None:
                # True only if what is leased leaves too little: the unleased can all be evicted.
                keep = sum(_RANKS[key] for key in leased | wants.keys())
                assert keep > total - 1
                continue
            assert not set(grant.evicted) & leased
            for key in grant.evicted:
                del rows[key]
            for key in leased & rows.keys():
                assert grant.rows.get(key, rows[key]) == rows[key]
            rows |= grant.rows
            held.append(frozenset(wants))
        elif name == "release" and held:
            assert isinstance(what, int)
            for key in held.pop(what % len(held)):
                ledger.release(key)
        elif name == "drop" and what in rows and what not in leased:
            assert isinstance(what, str)
            ledger.drop(what)
            del rows[what]
        taken = [row for key in rows for row in rows[key]]
        assert len(taken) == len(set(taken)) == total - 1 - ledger.rows_free
        assert all(0 < row < total for row in taken)
        assert all(len(rows[key]) == _RANKS[key] for key in rows)
        assert set(ledger.resident) == set(rows)
        assert all(ledger.leases(key) == sum(key in keys for keys in held) for key in _RANKS)
