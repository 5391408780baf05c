from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from hubctl.errors import AdapterError, InputError
from hubctl.refs import PinnedRef
from serve.engine.lora_layers import HostRows, RowPool
from serve.engine.requests import LoraUse
from serve.engine.residency import HostAdapter, Residency


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

    def load(self, pinned: PinnedRef) -> HostAdapter:
        name = pinned.repo_id.removeprefix("tests/")
        self.loads.append(name)
        assert self.gate.wait(10)
        if name == "x":
            raise AdapterError("broken")
        rank = {"h": 0, "b": 5}.get(name, 2)
        fill = float(ord(name))
        a = torch.full((rank, self.pool.a.shape[1]), fill)
        b = torch.full((rank, self.pool.b.shape[1]), fill)
        return HostAdapter(HostRows(a, b, frozenset({0})), {}, None)

    def residency(self, host_bytes: int = 1 << 20) -> Residency:
        return Residency(self.pool, self.load, total_rows=9, host_bytes=host_bytes)


def until(true: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline_s
        time.sleep(0.001)


def test_an_adapter_is_read_once_and_its_rows_are_filled() -> None:
    disk = Disk()
    residency = disk.residency()
    for _ in range(3):
        with residency.lease([use("a")], None) as (pooled,):
            assert residency.leases(ref("a")) == 1
            assert len(pooled.rows) == 2
            assert (disk.pool.a[list(pooled.rows)] == ord("a")).all()
            assert (disk.pool.a[0] == 0).all()
    assert disk.loads == ["a"]
    assert residency.leases(ref("a")) == 0
    assert residency.resident == (ref("a"),)


def test_many_at_once_read_it_once() -> None:
    disk = Disk()
    residency = disk.residency()
    disk.gate.clear()
    with ThreadPoolExecutor(6) as pool:
        futures = [pool.submit(residency.host, ref("a")) for _ in range(6)]
        until(lambda: disk.loads == ["a"])
        disk.gate.set()
        assert len({id(future.result(10)) for future in futures}) == 1
    assert disk.loads == ["a"]


def test_a_failed_load_reaches_all_who_wait_and_is_tried_again() -> None:
    disk = Disk()
    residency = disk.residency()
    for _ in range(2):
        with pytest.raises(AdapterError, match="broken"), residency.lease([use("x")], None):
            pass
    assert disk.loads == ["x", "x"]
    assert residency.rows_free == 8


def test_rows_of_the_unused_are_taken() -> None:
    disk = Disk()
    residency = disk.residency()
    for name in "acde":
        with residency.lease([use(name)], None):
            pass
    assert residency.rows_free == 0
    with residency.lease([use("b")], None) as (pooled,):
        assert (disk.pool.b[list(pooled.rows)] == ord("b")).all()
    assert residency.resident == (ref("e"), ref("b"))
    assert disk.loads == list("acdeb")  # host memory keeps what rows lose
    with residency.lease([use("a")], None) as (pooled,):
        assert (disk.pool.b[list(pooled.rows)] == ord("a")).all()
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
    with pytest.raises(InputError, match="rank 9 together, the server has 8 rows"):
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
        residency.host(ref(name))
    assert disk.loads == ["a", "c", "d", "c"]
