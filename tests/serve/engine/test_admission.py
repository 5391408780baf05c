from __future__ import annotations

import threading
import time

import pytest

from hubctl.errors import OverloadedError, UnavailableError
from serve.engine.admission import Admission
from tests.serve.waiting import until


def test_places_are_counted_and_given_back() -> None:
    admission = Admission(max_running=2, max_queued=0)
    with admission.place(None), admission.place(None):
        assert admission.running == 2
        with pytest.raises(OverloadedError, match="0 requests wait already"), admission.place(None):
            pass
    assert admission.running == 0


def test_a_place_is_given_back_after_an_error() -> None:
    admission = Admission(max_running=1, max_queued=0)
    with pytest.raises(RuntimeError), admission.place(None):
        raise RuntimeError
    with admission.place(None):
        assert admission.running == 1


def test_the_line_is_served_in_order() -> None:
    admission = Admission(max_running=1, max_queued=8)
    order: list[int] = []

    def visit(i: int) -> None:
        with admission.place(None):
            order.append(i)

    threads = [threading.Thread(target=visit, args=(i,)) for i in range(5)]
    with admission.place(None):
        for i, thread in enumerate(threads):
            thread.start()
            until(lambda i=i: admission.queued > i)  # type: ignore[misc]
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2, 3, 4]


def test_a_deadline_ends_the_wait() -> None:
    admission = Admission(max_running=1, max_queued=8)
    with admission.place(None):
        with pytest.raises(TimeoutError), admission.place(time.monotonic() + 0.01):
            pass
        assert admission.queued == 0


def test_nobody_enters_after_close() -> None:
    admission = Admission(max_running=1, max_queued=8)
    admission.close()
    with pytest.raises(UnavailableError), admission.place(None):
        pass


def _in_line(admission: Admission, tenants: str, served: list[str]) -> list[threading.Thread]:
    """A thread for each letter waits for a place, in this order; whoever gets one, or is refused, says so."""

    def visit(tenant: str) -> None:
        try:
            with admission.place(None, tenant=tenant):
                served.append(tenant)
        except OverloadedError:
            served.append(f"{tenant} refused")

    threads = []
    for tenant in tenants:
        thread = threading.Thread(target=visit, args=(tenant,))
        before = admission.queued
        thread.start()
        threads.append(thread)
        until(lambda before=before: admission.queued > before)  # type: ignore[misc]
    return threads


def test_a_tenant_with_many_requests_does_not_hold_up_another() -> None:
    admission, served = Admission(max_running=1, max_queued=8), list[str]()
    with admission.place(None, tenant="a"):
        threads = _in_line(admission, "aaaaabb", served)
    for thread in threads:
        thread.join()
    # a was charged for the place it had.
    assert served == ["b", "a", "b", "a", "a", "a", "a"]


def test_a_full_line_makes_room_for_a_tenant_that_has_less_of_it() -> None:
    admission, served = Admission(max_running=1, max_queued=4), list[str]()
    with admission.place(None, tenant="a"):
        threads = _in_line(admission, "aaaa", served)
        with pytest.raises(OverloadedError, match="4 requests wait already"):
            _visit(admission, "a")
        newcomer = threading.Thread(target=lambda: served.extend(_visit(admission, "b")))
        newcomer.start()
        until(lambda: bool(served))
        assert served == ["a refused"]
        assert admission.queued <= 4
    for thread in [*threads, newcomer]:
        thread.join()
    assert sorted(served) == ["a", "a", "a", "a refused", "b"]
    assert (admission.running, admission.queued) == (0, 0)


def _visit(admission: Admission, tenant: str) -> list[str]:
    with admission.place(None, tenant=tenant):
        return [tenant]


def test_who_waits_at_the_close_hears_of_it() -> None:
    admission, errors = Admission(max_running=1, max_queued=8), list[Exception]()

    def visit() -> None:
        try:
            _visit(admission, "a")
        except UnavailableError as error:
            errors.append(error)

    with admission.place(None):
        thread = threading.Thread(target=visit)
        thread.start()
        until(lambda: bool(admission.queued))
        admission.close()
        thread.join(10)
    assert len(errors) == 1
