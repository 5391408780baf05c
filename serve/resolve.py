"""From the names in a request to a base and pinned adapters.

The choice and the cache are pure (the time is an argument); `Resolver` around them asks the hub, each name
once however many requests wait for it, and never on the event loop: in threads of its own, so that a hub that
hangs holds up nothing but the names that only it knows.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from hubctl.errors import (
    AccessError,
    AdapterError,
    AdapterMismatchError,
    InputError,
    NotFoundError,
    OverloadedError,
    UnavailableError,
)
from hubctl.refs import AdapterRef, PinnedRef
from serve.engine.requests import LoraUse

ROUTES = {"text-to-image": "/v1/images/generations", "image-segmentation": "/v1/images/segmentations"}
"""Where each task is served."""
PATIENCE_S = 2.0
"""How long a look-up may take before a name seen lately is served as it was known; the look-up goes on."""
MAX_LOOKUPS = 32
"""Names that the hub is asked about at the same time; further ones wait."""
MAX_PAUSE_S = 300.0
"""The longest pause that the hub can ask for."""


class AdapterFacts(Protocol):
    """What the hub says of an adapter; `hubctl.hub.client.AdapterInfo` is one."""

    @property
    def pinned(self) -> PinnedRef:
        """Its commit and the sha256 of its weights."""

    @property
    def base_model(self) -> str | None:
        """The base its card names."""

    @property
    def task(self) -> str | None:
        """Its card's pipeline tag."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServedBase:
    """A base that this server runs."""

    name: str
    """As configured: what requests and engines call it."""
    id: str
    """What cards call it: `owner/name`, or the name when it came from a folder."""
    aliases: tuple[str, ...] = ()
    family: str
    task: str

    def is_called(self, text: str | None) -> bool:
        """Whether `text` means this base."""
        return text in (self.name, self.id, *self.aliases)


@dataclass(frozen=True, slots=True)
class Target:
    """What a request is to run on."""

    base: ServedBase
    loras: tuple[LoraUse, ...]


class AdapterCache:
    """What names resolved to, for a short while. Not thread-safe: it belongs to one event loop."""

    def __init__(self, *, ttl_s: float, stale_s: float, max_entries: int = 4096) -> None:
        self._ttl_s, self._stale_s, self._max_entries = ttl_s, stale_s, max_entries
        self._entries: OrderedDict[AdapterRef, tuple[float, AdapterFacts]] = OrderedDict()

    def fresh(self, ref: AdapterRef, now: float) -> AdapterFacts | None:
        """The answer for `ref` if the hub gave it at most `ttl_s` seconds ago."""
        return self._younger(ref, now, self._ttl_s)

    def stale(self, ref: AdapterRef, now: float) -> AdapterFacts | None:
        """The answer for `ref` if it is good enough while the hub is away (`stale_s`)."""
        return self._younger(ref, now, max(self._ttl_s, self._stale_s))

    def put(self, ref: AdapterRef, facts: AdapterFacts, now: float) -> None:
        """Keep an answer; the oldest one goes when there are too many."""
        self._entries[ref] = (now, facts)
        self._entries.move_to_end(ref)
        while len(self._entries) > self._max_entries:
            self._entries.popitem(last=False)

    def drop(self, ref: AdapterRef) -> None:
        """Forget `ref`: the hub says it is gone."""
        self._entries.pop(ref, None)

    def known(self, now: float) -> list[AdapterFacts]:
        """Everything not yet too old to serve, oldest first."""
        return [facts for ref, (_, facts) in self._entries.items() if self.stale(ref, now)]

    def _younger(self, ref: AdapterRef, now: float, age_s: float) -> AdapterFacts | None:
        entry = self._entries.get(ref)
        return entry[1] if entry is not None and now - entry[0] <= age_s else None


@contextmanager
def hidden(ref: AdapterRef | PinnedRef) -> Iterator[None]:
    """Make faults between this server and the hub look like what they are to a client.

    It is this server's token that the hub turns away, and this server that asks too often, not the client:
    a 401 or 429 would have people look for a fault of their own.
    """
    try:
        yield
    except AccessError as error:
        raise NotFoundError(
            f"adapter {ref} does not exist, or this server may not see it",
            hint="a private adapter needs a token on the server: hubctl login",
        ) from error
    except OverloadedError as error:
        wait_s = error.retry_after_s
        raise UnavailableError(
            error.message, hint=f"try again in {wait_s:.0f} s", retry_after_s=wait_s
        ) from error


def find_base(bases: Sequence[ServedBase], text: str) -> ServedBase | None:
    """The base that `text` means, if it means one."""
    return next((base for base in bases if base.is_called(text)), None)


def choose(
    bases: Sequence[ServedBase],
    task: str,
    base: ServedBase | None,
    adapters: Sequence[tuple[AdapterFacts, float]],
) -> Target:
    """Decide what a request runs on: the base it names, else its adapters' own, else the only one for `task`.

    Args:
        bases: all that this server runs.
        task: of the route.
        base: the one the request names, if it does.
        adapters: the ones the request names, with their scales.

    Raises:
        InputError: a base or adapter of another task, or several bases would do.
        AdapterError: an adapter's card names no base.
        AdapterMismatchError: an adapter is for a base that is not served, or for another than the request's.
        NotFoundError: no base here does this task.
    """
    for facts, _ in adapters:
        own = _base_of(bases, facts)
        if base is None:
            base = own
        elif not base.is_called(facts.base_model):  # two bases may be one model, in 8 bits and in 16
            raise AdapterMismatchError(
                f"adapter {facts.pinned.repo_id} was trained for {own.id}, this request runs on {base.id}",
                hint=f"leave `model` out, or use adapters for {base.id} only",
            )
    if base is None:
        able = [candidate for candidate in bases if candidate.task == task]
        if not able:
            raise NotFoundError(f"no base here does {task}", hint="GET /v1/models lists what there is")
        if len(able) > 1:
            names = ", ".join(candidate.name for candidate in able)
            raise InputError(
                "model: several bases could be meant", hint=f"name one of {names}", param="model"
            )
        base = able[0]
    if base.task != task:
        raise InputError(
            f"{base.name} does {base.task}, which is not what this route does",
            hint=f"POST to {ROUTES[base.task]}" if base.task in ROUTES else None,
            param="model",
        )
    return Target(base, tuple(LoraUse(ref=facts.pinned, scale=scale) for facts, scale in adapters))


def _base_of(bases: Sequence[ServedBase], facts: AdapterFacts) -> ServedBase:
    name = facts.pinned.repo_id
    if facts.base_model is None:
        raise AdapterError(
            f"the card of {name} names no base model",
            hint="add `base_model:` to its README.md and push again",
        )
    found = find_base(bases, facts.base_model)
    if found is None:
        served = ", ".join(base.id for base in bases)
        raise AdapterMismatchError(
            f"adapter {name} was trained for {facts.base_model}, which this server does not run",
            hint=f"it runs {served}; start one with: hubctl serve --base {facts.base_model}",
        )
    return found


class Resolver:
    """Turns names into targets. All methods belong to one event loop."""

    def __init__(
        self,
        bases: Callable[[], Awaitable[Sequence[ServedBase]]],
        lookup: Callable[[AdapterRef], AdapterFacts],
        cache: AdapterCache,
        *,
        clock: Callable[[], float] = time.monotonic,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._bases, self._lookup, self._cache, self._clock = bases, lookup, cache, clock
        self._patience_s = patience_s
        self._running: dict[AdapterRef, tuple[float, asyncio.Task[AdapterFacts]]] = {}
        """With the time when each was begun."""
        self._threads = ThreadPoolExecutor(MAX_LOOKUPS, thread_name_prefix="lookup")
        self._paused_until_s = -math.inf

    async def resolve(self, task: str, model: str | None, loras: Sequence[tuple[str, float]]) -> Target:
        """The target of a request that names `model` (a base or an adapter) and `loras` (id, scale).

        Raises:
            HubctlError: as `choose` and `adapter` say.
        """
        bases = await self._bases()
        base = find_base(bases, model) if model is not None else None
        named = [*([(model, 1.0)] if model is not None and base is None else []), *loras]
        refs = [(_parse(text, bases), scale) for text, scale in named]
        found = await asyncio.gather(*(self.adapter(ref) for ref, _ in refs))
        return choose(
            bases, task, base, [(facts, scale) for facts, (_, scale) in zip(found, refs, strict=True)]
        )

    async def adapter(self, ref: AdapterRef) -> AdapterFacts:
        """What `ref` is now: from the cache when fresh, else from the hub, else as it was known lately.

        Raises:
            NotFoundError: there is no such adapter, or this server may not see it.
            UnavailableError: the hub does not answer, and `ref` was not seen lately either.
        """
        now_s = self._clock()
        if facts := self._cache.fresh(ref, now_s):
            return facts
        # No await between look-up and entry: one question to the hub, however many requests wait for it.
        if ref not in self._running:
            task = asyncio.create_task(self._ask(ref))
            task.add_done_callback(lambda done: self._finished(ref, done))
            self._running[ref] = now_s, task
        begun_s, task = self._running[ref]
        stale = self._cache.stale(ref, now_s)
        if stale is None:
            return await asyncio.shield(task)  # a client that leaves must not cancel it for the others
        done, _ = await asyncio.wait({task}, timeout=max(0.0, begun_s + self._patience_s - now_s))
        return task.result() if done else stale

    def known(self) -> list[AdapterFacts]:
        """Adapters that requests named lately."""
        return self._cache.known(self._clock())

    def _finished(self, ref: AdapterRef, task: asyncio.Task[AdapterFacts]) -> None:
        self._running.pop(ref, None)
        if not task.cancelled():
            task.exception()  # looked at, so that asyncio does not complain when every client has left

    async def _ask(self, ref: AdapterRef) -> AdapterFacts:
        try:
            with hidden(ref):
                facts = await self._look_up(ref)
        except UnavailableError:
            stale = self._cache.stale(ref, self._clock())
            if stale is None:
                raise
            return stale
        except NotFoundError:
            self._cache.drop(ref)
            raise
        self._cache.put(ref, facts, self._clock())
        return facts

    async def _look_up(self, ref: AdapterRef) -> AdapterFacts:
        """What the hub says; it is not asked while it wants a pause."""
        left_s = self._paused_until_s - self._clock()
        if left_s > 0:
            raise OverloadedError("the hub asks for a pause", retry_after_s=left_s)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, self._lookup, ref)
        except OverloadedError as error:
            self._paused_until_s = self._clock() + min(error.retry_after_s, MAX_PAUSE_S)
            raise


def _parse(text: str, bases: Sequence[ServedBase]) -> AdapterRef:
    try:
        return AdapterRef.parse(text)
    except InputError:
        names = ", ".join(base.name for base in bases)
        raise NotFoundError(
            f"no model '{text}'", hint=f"bases here: {names}; an adapter is named OWNER/NAME[@REVISION]"
        ) from None
