from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from hubctl.errors import AdapterError, InputError, UnavailableError
from hubctl.refs import PinnedRef
from serve.engine.requests import LoraUse
from serve.engine.residency import MAX_REFUSED, Adapter, Loaded, Residency
from serve.engine.row_pool import HostRows, RowPool
from tests.serve.waiting import until


def ref(name: str) -> PinnedRef:
    return PinnedRef(f"tests/{name}", "main", name * 40, name * 64)


def use(name: str) -> LoraUse:
    return LoraUse(ref=ref(name))


class Disk:
    """Where adapters come from: `a2` has rank 2; counts loads, and can hold them up."""

    def __init__(self) -> None:
        self.pool = RowPool({"model": nn.Sequential(nn.Linear(4, 4))}, total_rows=9)
        self.loads: list[str] = []
        self.gate = threading.Event()
        self.gate.set()

    def load(self, pinned: PinnedRef) -> Loaded:
        name = pinned.repo_id.removeprefix("tests/")
        self.loads.append(name)
        assert self.gate.wait(10)
        if name == "x":
            raise AdapterError("broken")
        if name == "u":
            raise UnavailableError("no answer")
        rank = {"h": 0, "b": 5}.get(name, 2)
        fill = float(ord(name))
        (slot,) = self.pool.slots.values()
        numbers = torch.full((rank, 4), fill)
        rows = HostRows(numbers, numbers, (slot,) if rank else (), rank)
        return Loaded(Adapter(rank=rank, rows=rank, layers=frozenset({0}), heads={}, labels=None), rows)

    def residency(self, host_bytes: int = 1 << 20) -> Residency:
        return Residency(self.pool, self.load, total_rows=9, host_bytes=host_bytes)


def test_an_adapter_is_read_once_and_its_rows_are_filled() -> None:
    disk = Disk()
    residency = disk.residency()
    for _ in range(3):
        with residency.lease([use("a")], None) as (pooled,):
            assert residency.leases(ref("a")) == 1
            assert len(pooled.rows) == 2
            assert (disk.pool.a[list(pooled.rows), :4] == ord("a")).all()
            assert (disk.pool.a[0] == 0).all()
    assert disk.loads == ["a"]
    assert residency.leases(ref("a")) == 0
    assert residency.resident == (ref("a"),)


def test_many_at_once_read_it_once() -> None:
    disk = Disk()
    residency = disk.residency()
    disk.gate.clear()
    with ThreadPoolExecutor(6) as pool:
        futures = [pool.submit(residency.prefetch, ref("a")) for _ in range(6)]
        until(lambda: disk.loads == ["a"])
        disk.gate.set()
        assert len({id(future.result(10)) for future in futures}) == 1
    assert disk.loads == ["a"]


def test_what_the_gate_refused_is_not_read_again() -> None:
    disk = Disk()
    residency = disk.residency()
    errors = []
    for _ in range(3):
        with pytest.raises(AdapterError, match="broken") as info, residency.lease([use("x")], None):
            pass
        errors.append(info.value)
    assert disk.loads == ["x"]
    assert len({id(error) for error in errors}) == 3
    assert residency.rows_free == 8


def test_a_hub_that_could_not_be_reached_is_asked_again() -> None:
    disk = Disk()
    residency = disk.residency()
    for _ in range(2):
        with pytest.raises(UnavailableError), residency.lease([use("u")], None):
            pass
    assert disk.loads == ["u", "u"]


def test_the_memory_of_refusals_is_bounded() -> None:
    disk = Disk()
    residency = disk.residency()
    for i in range(MAX_REFUSED + 1):
        with pytest.raises(AdapterError):
            residency.prefetch(PinnedRef("tests/x", "main", f"{i:040}", "0" * 64))
    assert len(residency._refused) == MAX_REFUSED


def test_resident_adapters_need_no_host_memory() -> None:
    disk = Disk()
    residency = disk.residency(host_bytes=1)
    for name in "acacac":
        with residency.lease([use(name)], None):
            pass
    assert disk.loads == ["a", "c"]


def test_a_pinned_adapter_stays() -> None:
    disk = Disk()
    residency = disk.residency()
    residency.pin(ref("a"))
    residency.pin(ref("a"))
    for name in "cdeb":
        with residency.lease([use(name)], None):
            pass
    assert ref("a") in residency.resident
    residency.unpin(ref("a"))
    residency.unpin(ref("a"))
    for name in "cde":
        with residency.lease([use(name)], None):
            pass
    with residency.lease([use("b")], None):
        assert ref("a") not in residency.resident
    with pytest.raises(AdapterError):
        residency.pin(ref("x"))
    residency.unpin(ref("x"))


def test_rows_of_the_unused_are_taken() -> None:
    disk = Disk()
    residency = disk.residency()
    for name in "acde":
        with residency.lease([use(name)], None):
            pass
    assert residency.rows_free == 0
    with residency.lease([use("b")], None) as (pooled,):
        assert (disk.pool.b[list(pooled.rows), :4] == ord("b")).all()
    assert residency.resident == (ref("e"), ref("b"))
    assert disk.loads == list("acdeb")  # host memory keeps what rows lose
    with residency.lease([use("a")], None) as (pooled,):
        assert (disk.pool.b[list(pooled.rows), :4] == ord("a")).all()
    assert disk.loads == list("acdeb")


def test_requests_get_rows_in_the_order_they_came() -> None:
    residency = Disk().residency()
    order: list[str] = []

    def want(name: str) -> None:
        with residency.lease([use(name)], None):
            order.append(name)

    threads = [threading.Thread(target=want, args=(name,)) for name in "bac"]
    with residency.lease([use("d"), use("e")], None):
        for i, thread in enumerate(threads):  # b does not fit; a and c would, but b came first
            thread.start()
            until(lambda i=i: len(residency._line) == i + 1)  # type: ignore[misc]
        assert order == []
    for thread in threads:
        thread.join(10)
    assert order[0] == "b"
    assert sorted(order) == ["a", "b", "c"]


def test_a_deadline_ends_the_wait_for_rows() -> None:
    residency = Disk().residency()
    with residency.lease([use("b")], None):
        with pytest.raises(TimeoutError), residency.lease([use("a"), use("c")], time.monotonic() + 0.01):
            pass
        assert residency.leases(ref("a")) == 0
        with residency.lease([use("a")], None):  # nothing stays behind in the line
            pass


def test_more_than_there_is_is_refused_at_once() -> None:
    residency = Disk().residency()
    with pytest.raises(InputError, match="9 rows together, the server has 8"):
        residency.lease([use("b"), use("a"), use("c")], None).__enter__()


def test_the_same_adapter_twice_takes_its_rows_once() -> None:
    residency = Disk().residency()
    with residency.lease([use("a"), LoraUse(ref=ref("a"), scale=2.0)], None) as (one, two):
        assert one.rows == two.rows
        assert (one.scale, two.scale) == (1.0, 2.0)
        assert residency.rows_free == 6
    assert residency.leases(ref("a")) == 0


def test_an_adapter_of_heads_alone_takes_a_row_to_be_counted() -> None:
    residency = Disk().residency()
    with residency.lease([use("h")], None) as (pooled,):
        assert pooled.rows == ()
        assert residency.rows_free == 7


def test_host_memory_has_a_budget() -> None:
    disk = Disk()
    size = disk.load(ref("a")).size_bytes
    disk.loads.clear()
    residency = disk.residency(host_bytes=2 * size)
    for name in ("a", "c", "a", "d", "a", "c"):
        residency.prefetch(ref(name))
    assert disk.loads == ["a", "c", "d", "c"]
