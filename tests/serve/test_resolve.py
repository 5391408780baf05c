from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from hubctl.errors import (
    AccessError,
    AdapterError,
    AdapterMismatchError,
    HubctlError,
    InputError,
    NotFoundError,
    OverloadedError,
    UnavailableError,
)
from hubctl.refs import AdapterRef
from serve.resolve import AdapterCache, Resolver, ServedBase, choose, find_base, hidden
from serve.schema import fault_body
from tests.serve.local import Facts, Shelf, facts

T2I, SEG = "text-to-image", "image-segmentation"
TINY = ServedBase(name="tiny", id="acme/tiny", aliases=("mirror/tiny",), family="sd1", task=T2I)
TINY_INT8 = ServedBase(name="tiny-int8", id="acme/tiny", family="sd1", task=T2I)
BIG = ServedBase(name="big", id="acme/big", family="sdxl", task=T2I)
PETS = ServedBase(name="pets", id="acme/pets", family="segformer", task=SEG)
INK, WASH = facts("alice/ink"), facts("bob/wash")


@pytest.mark.parametrize("text", ["tiny", "acme/tiny", "mirror/tiny"])
def test_base_is_found_by_name_id_and_alias(text: str) -> None:
    assert find_base([BIG, TINY], text) is TINY


@pytest.mark.parametrize(
    ("bases", "task", "base", "adapters", "expected"),
    [
        pytest.param([TINY, PETS], T2I, None, [], TINY, id="the only base for the task"),
        pytest.param([TINY, PETS], SEG, None, [], PETS, id="the only base for the other task"),
        pytest.param([TINY, BIG], T2I, BIG, [], BIG, id="the base named"),
        pytest.param([BIG, TINY], T2I, None, [INK], TINY, id="the adapter's own base"),
        pytest.param([BIG, TINY], T2I, TINY, [INK, WASH], TINY, id="both agree"),
        pytest.param([BIG, TINY], T2I, None, [facts("a/b", "mirror/tiny")], TINY, id="card names an alias"),
        pytest.param([TINY, TINY_INT8], T2I, TINY_INT8, [INK], TINY_INT8, id="the second of one model"),
    ],
)
def test_choice(
    bases: list[ServedBase],
    task: str,
    base: ServedBase | None,
    adapters: Sequence[Facts],
    expected: ServedBase,
) -> None:
    target = choose(bases, task, base, [(one, 0.5) for one in adapters])
    assert target.base is expected
    assert [(use.ref.repo_id, use.scale) for use in target.loras] == [
        (one.pinned.repo_id, 0.5) for one in adapters
    ]


@pytest.mark.parametrize(
    ("bases", "task", "base", "adapters", "error", "message"),
    [
        ([TINY, BIG], T2I, None, [], InputError, "several bases could be meant"),
        ([PETS], T2I, None, [], NotFoundError, "no base here does text-to-image"),
        ([TINY, PETS], T2I, PETS, [], InputError, "pets does image-segmentation"),
        ([TINY, PETS], SEG, None, [INK], InputError, "tiny does text-to-image"),
        ([TINY, BIG], T2I, BIG, [INK], AdapterMismatchError, "this request runs on acme/big"),
        ([TINY, BIG], T2I, None, [INK, facts("a/b", "acme/big")], AdapterMismatchError, "a/b was trained"),
        ([TINY], T2I, None, [facts("a/b", "acme/huge")], AdapterMismatchError, "acme/huge, which this"),
        ([TINY], T2I, None, [facts("a/b", None)], AdapterError, "the card of a/b names no base model"),
    ],
)  # fmt: skip
def test_refusal(
    bases: list[ServedBase],
    task: str,
    base: ServedBase | None,
    adapters: list[Facts],
    error: type[HubctlError],
    message: str,
) -> None:
    with pytest.raises(error, match=message) as caught:
        choose(bases, task, base, [(one, 1.0) for one in adapters])
    assert caught.value.hint


def test_cache_is_fresh_then_stale_then_empty() -> None:
    cache, ref = AdapterCache(ttl_s=1, stale_s=300), AdapterRef("alice/ink")
    cache.put(ref, INK, now=10)
    assert cache.fresh(ref, now=11) is INK
    assert cache.fresh(ref, now=11.1) is None
    assert cache.stale(ref, now=310) is INK
    assert cache.stale(ref, now=310.1) is None
    assert cache.fresh(AdapterRef("alice/ink", "v2"), now=10) is None


def test_cache_stays_small() -> None:
    cache = AdapterCache(ttl_s=1, stale_s=1, max_entries=3)
    for number in range(5):
        cache.put(AdapterRef(f"alice/ink{number}"), facts(f"alice/ink{number}"), now=0)
    assert [one.pinned.repo_id for one in cache.known(now=0)] == ["alice/ink2", "alice/ink3", "alice/ink4"]


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def resolver(shelf: Shelf, clock: Clock, patience_s: float = 60) -> Resolver:
    async def bases() -> Sequence[ServedBase]:
        return [TINY, PETS]

    return Resolver(
        bases, shelf.lookup, AdapterCache(ttl_s=1, stale_s=300), clock=clock, patience_s=patience_s
    )


def test_model_may_be_an_adapter_with_others_beside_it() -> None:
    shelf = Shelf()
    shelf.put(INK, WASH)
    target = asyncio.run(resolver(shelf, Clock()).resolve(T2I, "alice/ink@v1", [("bob/wash", 0.3)]))
    assert target.base is TINY
    assert [(use.ref.repo_id, use.scale) for use in target.loras] == [("alice/ink", 1.0), ("bob/wash", 0.3)]
    assert AdapterRef("alice/ink", "v1") in shelf.asked


@pytest.mark.parametrize("model", ["nonesuch", "../etc/passwd", "http://x/y", "a/b/c", "/tiny", "a/b@", ""])
def test_what_is_no_name_is_not_asked_of_the_hub(model: str) -> None:
    shelf = Shelf()
    with pytest.raises(NotFoundError, match="no model") as caught:
        asyncio.run(resolver(shelf, Clock()).resolve(T2I, model, []))
    assert "tiny, pets" in str(caught.value.hint)
    assert shelf.asked == []


def test_hub_is_asked_once_for_many_and_again_after_the_time() -> None:
    shelf, clock = Shelf(), Clock()
    shelf.put(INK)
    ref = AdapterRef("alice/ink")

    async def work() -> None:
        one = resolver(shelf, clock)
        await asyncio.gather(*(one.adapter(ref) for _ in range(20)))
        assert len(shelf.asked) == 1
        await one.adapter(ref)
        assert len(shelf.asked) == 1
        clock.now_s += 1.1
        shelf.put(facts("alice/ink", commit="d" * 40))
        assert (await one.adapter(ref)).pinned.commit == "d" * 40
        assert len(shelf.asked) == 2

    asyncio.run(work())


def test_unknown_adapter_is_found_as_soon_as_it_is_there() -> None:
    shelf, ref = Shelf(), AdapterRef("alice/ink")

    async def work() -> None:
        one = resolver(shelf, Clock())
        with pytest.raises(NotFoundError):
            await one.adapter(ref)
        shelf.put(INK)
        assert await one.adapter(ref) is INK

    asyncio.run(work())


def test_known_names_outlive_the_hub_for_a_while() -> None:
    shelf, clock = Shelf(), Clock()
    shelf.put(INK)
    ref = AdapterRef("alice/ink")

    async def work() -> None:
        one = resolver(shelf, clock)
        await one.adapter(ref)
        shelf.fault = UnavailableError("the hub is away")
        clock.now_s += 200
        assert await one.adapter(ref) is INK
        clock.now_s += 200
        with pytest.raises(UnavailableError):
            await one.adapter(ref)

    asyncio.run(work())


def test_a_known_name_does_not_wait_for_a_hub_that_hangs() -> None:
    shelf, clock = Shelf(), Clock()
    shelf.put(INK)
    ref = AdapterRef("alice/ink")

    async def work() -> None:
        one = resolver(shelf, clock, patience_s=0.01)
        await one.adapter(ref)
        clock.now_s += 2
        shelf.awake.clear()
        shelf.put(facts("alice/ink", commit="d" * 40))
        for _ in range(3):
            assert await asyncio.wait_for(one.adapter(ref), 10) is INK
        assert len(shelf.asked) == 2  # the look-up goes on, and there is one
        shelf.awake.set()
        while one.known() == [INK]:
            await asyncio.sleep(0)
        assert (await one.adapter(ref)).pinned.commit == "d" * 40
        assert len(shelf.asked) == 2

    try:
        asyncio.run(work())
    finally:
        shelf.awake.set()


def test_a_hub_that_wants_a_pause_gets_it_and_known_names_are_served() -> None:
    shelf, clock = Shelf(), Clock()
    shelf.put(INK)
    ref, new = AdapterRef("alice/ink"), AdapterRef("bob/wash")

    async def work() -> None:
        one = resolver(shelf, clock)
        await one.adapter(ref)
        clock.now_s += 2
        shelf.fault = OverloadedError("the hub asks for a pause: 1,000 requests", retry_after_s=30)
        assert await one.adapter(ref) is INK
        shelf.fault = None
        clock.now_s += 20
        assert await one.adapter(ref) is INK
        with pytest.raises(UnavailableError, match="asks for a pause") as caught:
            await one.adapter(new)
        assert caught.value.hint == "try again in 10 s"
        assert fault_body(caught.value, "id")[:2] == (503, {"Retry-After": "10"})
        assert shelf.asked == [ref, ref]
        clock.now_s += 11
        with pytest.raises(NotFoundError):
            await one.adapter(new)

    asyncio.run(work())


def test_a_private_or_deleted_adapter_is_not_served_from_memory() -> None:
    shelf, clock = Shelf(), Clock()
    shelf.put(INK)
    ref = AdapterRef("alice/ink")

    async def work() -> None:
        one = resolver(shelf, clock)
        await one.adapter(ref)
        clock.now_s += 2
        shelf.fault = AccessError("private", forbidden=True)
        with pytest.raises(NotFoundError, match="may not see it"):
            await one.adapter(ref)
        shelf.fault = UnavailableError("the hub is away")
        with pytest.raises(UnavailableError):
            await one.adapter(ref)

    asyncio.run(work())


def test_a_refusal_of_the_hub_looks_like_an_adapter_that_is_not_there() -> None:
    with pytest.raises(NotFoundError, match=f"{INK.pinned} does not exist"), hidden(INK.pinned):
        raise AccessError("hub refuses the token")


def test_one_client_leaving_does_not_cancel_the_question_for_others() -> None:
    shelf = Shelf()
    shelf.put(INK)
    ref = AdapterRef("alice/ink")

    async def work() -> None:
        one = resolver(shelf, Clock())
        first = asyncio.create_task(one.adapter(ref))
        second = asyncio.create_task(one.adapter(ref))
        await asyncio.sleep(0)
        first.cancel()
        assert await second is INK
        assert len(shelf.asked) == 1

    asyncio.run(work())
