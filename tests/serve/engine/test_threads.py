"""Who computes with how many threads."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

import torch

from serve.engine.shared_module import Owner
from serve.engine.threads import one_core


def _in_new_thread(work: Callable[[], int]) -> int:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]


def _owner() -> Owner:
    return Owner(lambda *_: contextlib.nullcontext(), max_gather_s=0.0)


def test_one_core_ends_with_the_block() -> None:
    before = torch.get_num_threads()
    with one_core():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


def test_the_owner_computes_with_as_many_threads_as_who_made_it() -> None:
    """Also when its first operation comes while another thread computes alone."""

    def made_with(threads: int) -> int:
        torch.set_num_threads(threads)
        owner = _owner()
        try:
            with one_core():
                return owner.do(torch.get_num_threads)
        finally:
            owner.close()

    assert _in_new_thread(lambda: made_with(3)) == 3
