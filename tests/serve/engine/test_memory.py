"""Caps by memory, on a device of our own making: a forward takes a fixed part, and a part for each row."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from serve.engine.memory import MOST_KINDS, RESERVE, MemoryCap, Reading, gauge_of, rows_that_fit
from serve.engine.shared_module import CallShape, Owner, SharedModule


@pytest.mark.parametrize(
    ("row_bytes", "free_bytes", "reserve_bytes", "rows"),
    [
        pytest.param(10, 100, 0, 10, id="all that is free"),
        pytest.param(10, 109, 0, 10, id="no part of a row"),
        pytest.param(10, 100, 25, 7, id="less the reserve"),
        pytest.param(2.5, 100, 0, 40, id="a mean need not be whole"),
        pytest.param(10, 5, 0, 1, id="one is always tried"),
        pytest.param(10, 5, 50, 1, id="even when the reserve is used up"),
        pytest.param(0, 100, 0, 100, id="rows that seem to take nothing"),
        pytest.param(-8, 100, 0, 100, id="memory that others gave back meanwhile"),
    ],
)
def test_rows_that_fit(row_bytes: float, free_bytes: int, reserve_bytes: int, rows: int) -> None:
    assert rows_that_fit(row_bytes=row_bytes, free_bytes=free_bytes, reserve_bytes=reserve_bytes) == rows


_BYTES = st.integers(0, 1 << 40)


@given(row_bytes=st.integers(1, 1 << 34), free_bytes=_BYTES, reserve_bytes=_BYTES)
def test_as_many_as_fit_and_not_one_more(row_bytes: int, free_bytes: int, reserve_bytes: int) -> None:
    rows = rows_that_fit(row_bytes=row_bytes, free_bytes=free_bytes, reserve_bytes=reserve_bytes)
    assert rows == 1 or rows * row_bytes + reserve_bytes <= free_bytes
    assert (rows + 1) * row_bytes + reserve_bytes > free_bytes


class Device:
    """Memory that a forward fills and leaves again."""

    def __init__(self, *, total_bytes: int, used_bytes: int = 0) -> None:
        self.total_bytes, self.used_bytes = total_bytes, used_bytes
        self._peak_bytes = 0

    def begin(self) -> int:
        self._peak_bytes = self.used_bytes
        return self.used_bytes

    def end(self) -> Reading:
        return Reading(
            peak_bytes=self._peak_bytes,
            free_bytes=self.total_bytes - self.used_bytes,
            total_bytes=self.total_bytes,
        )

    def run(self, taken_bytes: int) -> None:
        if self.used_bytes + taken_bytes > self.total_bytes:
            raise torch.OutOfMemoryError
        self._peak_bytes = max(self._peak_bytes, self.used_bytes + taken_bytes)


def _forward(cap: MemoryCap, device: Device, rows: int, *, row_bytes: int, fixed_bytes: int = 0) -> None:
    with cap.forward("kind", rows):
        device.run(fixed_bytes + rows * row_bytes)


def test_a_forward_teaches_the_next_of_its_kind() -> None:
    device = Device(total_bytes=1000, used_bytes=350)
    cap = MemoryCap(device)
    assert cap.most_rows("kind", 32) == 32  # nothing is known yet
    _forward(cap, device, 2, row_bytes=30)
    assert cap.most_rows("kind", 32) == 20  # (650 - 50 in reserve) / 30
    assert cap.most_rows("kind", 8) == 8
    assert cap.most_rows("another", 32) == 32


def test_memory_that_others_take_or_give_back_counts() -> None:
    device = Device(total_bytes=1000)
    cap = MemoryCap(device)
    for used_bytes, rows in ((0, 31), (600, 11), (200, 25)):
        device.used_bytes = used_bytes
        _forward(cap, device, 2, row_bytes=30)
        assert cap.most_rows("kind", 32) == rows


def test_a_small_forward_does_not_shrink_the_next() -> None:
    device = Device(total_bytes=1000)
    cap = MemoryCap(device)
    for rows in (10, 1):
        _forward(cap, device, rows, row_bytes=30, fixed_bytes=100)
        assert cap.most_rows("kind", 32) == 23  # 950 / 40


def test_a_forward_that_fails_teaches_nothing() -> None:
    device = Device(total_bytes=100)
    cap = MemoryCap(device)
    with pytest.raises(torch.OutOfMemoryError):
        _forward(cap, device, 8, row_bytes=30)
    assert cap.most_rows("kind", 8) == 8


@given(
    row_bytes=st.integers(1, 10_000),
    fixed_bytes=st.integers(0, 20_000),
    first=st.integers(1, 16),
    most=st.integers(1, 64),
    others=st.lists(st.integers(0, 500_000), min_size=1, max_size=5),
)
def test_after_the_first_no_forward_overfills_the_device(
    row_bytes: int, fixed_bytes: int, first: int, most: int, others: list[int]
) -> None:
    """A fixed part within the reserve never makes a forward fail, nor one row more than one in the budget."""
    device = Device(total_bytes=1_000_000)
    assert fixed_bytes <= device.total_bytes * RESERVE
    cap = MemoryCap(device)
    _forward(cap, device, first, row_bytes=row_bytes, fixed_bytes=fixed_bytes)
    for used_bytes in others:
        device.used_bytes = used_bytes
        with cap.forward("a probe", 1):  # any forward of the module reads what is free
            device.run(0)
        rows = cap.most_rows("kind", most)
        assert 1 <= rows <= most
        _forward(cap, device, rows, row_bytes=row_bytes, fixed_bytes=fixed_bytes)


def test_old_kinds_are_forgotten() -> None:
    device = Device(total_bytes=1000)
    cap = MemoryCap(device)
    for kind in range(MOST_KINDS + 1):
        for seen in (0, kind):  # 0 stays in use
            with cap.forward(seen, 1):
                device.run(100)
    assert [cap.most_rows(kind, 32) for kind in (0, 1, 2, MOST_KINDS)] == [9, 32, 9, 9]


@pytest.mark.parametrize(
    ("used_bytes", "rows", "spare_bytes"),
    [
        pytest.param(0, 2, 1000 - 50 - 60, id="less the reserve and the forward's own"),
        pytest.param(350, 4, 650 - 50 - 120, id="of a larger forward"),
        pytest.param(950, 1, 0, id="nothing left"),
    ],
)
def test_what_a_forward_leaves(used_bytes: int, rows: int, spare_bytes: int) -> None:
    device = Device(total_bytes=1000)
    cap = MemoryCap(device)
    assert cap.spare_bytes("kind", 2) == 0  # nothing is known yet
    _forward(cap, device, 2, row_bytes=30)
    device.used_bytes = used_bytes
    with cap.forward("a probe", 1):
        device.run(0)
    assert cap.spare_bytes("kind", rows) == spare_bytes


def test_on_a_cpu_nothing_is_capped() -> None:
    assert gauge_of(torch.device("cpu")) is None
    cap = MemoryCap(None)
    with cap.forward("kind", 1):
        pass
    assert cap.most_rows("kind", 32) == 32


class Filling(nn.Module):
    """Takes 30 bytes of a device for every row."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self._device = device
        self.batches: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(x))
        self._device.run(30 * len(x))
        return 2 * x


def test_the_owner_keeps_forwards_within_the_device() -> None:
    device = Device(total_bytes=1000, used_bytes=800)
    module = Filling(device)
    owner = Owner(lambda *_: nullcontext(), max_gather_s=0.0)
    try:
        shared = SharedModule(owner, "filling", module, CallShape(stage=0, max_rows=32))
        shared.memory = MemoryCap(device)
        with owner.client((), None) as client:
            for rows in (2, 14):
                x = torch.arange(float(rows))[:, None]
                assert torch.equal(client.call(shared, (x,), {}), 2 * x)
        # (200 - 50 in reserve) / 30: the device is never full, and nothing has to be run again.
        assert module.batches == [2, 5, 5, 4]
    finally:
        owner.close()


def test_a_loop_gets_a_share_of_what_its_forwards_leave_and_that_is_no_part_of_them() -> None:
    device = Device(total_bytes=1000)
    offered: list[int | None] = []

    @contextmanager
    def mixed(calls: object, weights_bytes: int | None) -> Iterator[None]:
        offered.append(weights_bytes)
        device.used_bytes += weights_bytes or 0
        yield

    owner = Owner(mixed, max_gather_s=0.0, weights_share=0.5)
    try:
        for loops in (False, True):
            shape = CallShape(stage=0, max_rows=32, loops=loops)
            shared = SharedModule(owner, "filling", Filling(device), shape)
            shared.memory = MemoryCap(device)
            with owner.client((), None) as client:
                for _ in range(2):
                    client.call(shared, (torch.ones(2, 1),), {})
        assert offered == [None, None, 0, (1000 - 50 - 60) // 2]
        arguments, _ = shared.prepared((torch.ones(2, 1),), {})
        assert shared.most_rows(shared.group(arguments), 0.0) == (1000 - 445 - 50) // 30
    finally:
        owner.close()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_tells_what_a_forward_took() -> None:
    gauge = gauge_of(torch.device("cuda"))
    assert gauge is not None
    before_bytes = gauge.begin()
    kept = torch.empty(1 << 20, dtype=torch.uint8, device="cuda")
    passing = torch.empty(8 << 20, dtype=torch.uint8, device="cuda")
    del passing
    reading = gauge.end()
    assert reading.peak_bytes - before_bytes == 9 << 20
    assert gauge.begin() - before_bytes == kept.nbytes
    assert 0 < reading.free_bytes < reading.total_bytes
