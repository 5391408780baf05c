from __future__ import annotations

import threading
import time

import pytest

from hubctl.errors import OverloadedError, UnavailableError
from serve.engine.admission import Admission


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
            while admission.queued <= i:
                time.sleep(0.001)
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
