"""Shared modules: one thread runs every heavy module; pipelines call it through proxies and share forwards.

A pipeline runs unmodified in its request's own thread. In place of `unet`, `transformer`, text encoders and
VAE it holds proxies: objects of the module's own class whose methods hand their arguments to the owner thread
and wait. That thread takes calls that fit together (same module, same shapes past dim 0, same dtypes, equal
other arguments), concatenates them along dim 0, runs the module once, and splits the result.

Threads: `Client.call` runs in request threads; everything that touches a module runs in the owner thread,
the only one that computes with all cores (see `threads.py`).
"""

from __future__ import annotations

import inspect
import itertools
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn

from hubctl.errors import InputError, UnavailableError
from serve.engine.memory import MemoryCap, gauge_of
from serve.engine.merging import merged, parted
from serve.engine.offload import Offload
from serve.engine.requests import Cancelled
from serve.engine.schedule import Run, Thinking, Waiting, choose
from serve.engine.threads import compute_with

MEMORY_CAP_S = 60.0
"""How long a forward that did not fit into memory keeps such forwards small: its cause may pass."""

LINGER_SHARE = 0.1
"""How long a request's first call waits for others to arrive, as a share of the time that a row takes."""

TURN_S = 0.02
"""How long a request waits for its turn at most, before it goes on beside the others."""

LAST_STAGE = 1 << 30
"""Beyond every stage: who is there comes back only for what it called first."""

T = TypeVar("T")
Mixed = Callable[[Sequence[tuple[Any, int]], int | None], AbstractContextManager[None]]
"""Makes a forward's rows follow (adapters, rows) of each call in it; see `RowPool.mixed`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CallShape:
    """How one method of one module is called, as data."""

    method: str = "forward"
    stage: int
    """See `schedule.Waiting`."""
    max_rows: int
    unbatched: frozenset[str] = frozenset()
    """Tensor arguments without a batch dimension: shared, and must be equal."""
    listed: frozenset[str] = frozenset()
    """Arguments that are lists of rows, which may differ in shape; the output is then `(list of rows,)`."""
    ignored: frozenset[str] = frozenset()
    """Arguments that differ from request to request and that the method does not use."""
    loops: bool = False
    """Its callers come back for it, step after step."""
    dtype: torch.dtype | None = None
    """What floating-point arguments are brought to; None takes them as they come."""


@dataclass(eq=False, slots=True)
class _Call:
    client: Client
    module: SharedModule
    arguments: dict[str, Any]
    waiting: Waiting
    done: threading.Event = field(default_factory=threading.Event)
    output: Any = None
    error: BaseException | None = None


class Client:
    """One request's place at the owner: its adapters, its deadline, and where on its way it is."""

    def __init__(
        self, owner: Owner, adapters: Any, deadline_s: float | None, cancelled: Cancelled = None
    ) -> None:
        self.number = next(owner.numbers)
        self.adapters = adapters
        self.deadline_s = deadline_s
        self.cancelled = cancelled
        self.thinking = Thinking(stage=-1, group=None)
        self.first_group: Hashable = None
        self._owner = owner
        self._in_turn = False

    def call(self, module: SharedModule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the module's method, possibly together with other clients' calls.

        Raises:
            TimeoutError: the deadline has passed.
            CancelledError: nobody waits for the request any more.
            UnavailableError: the owner is closed.
        """
        if self.cancelled is not None and self.cancelled.is_set():
            raise CancelledError("the client has left")
        if self.deadline_s is not None and time.monotonic() >= self.deadline_s:
            raise TimeoutError("the request's time is up")
        arguments, rows = module.prepared(args, kwargs)
        if not module.shape.listed:
            return self._answers(module, [(arguments, rows)])[0]
        # Each row is a call of its own: it shares a forward with whichever rows have its shape.
        (output,) = merged(self._answers(module, module.pieces(arguments, rows, most=1)))
        return (list(output),)

    def end_turn(self) -> None:
        """Let the next request go on; see `Owner.turn`."""
        if self._in_turn:
            self._in_turn = False
            self._owner.turn.release()

    def _answers(self, module: SharedModule, pieces: Iterable[tuple[dict[str, Any], int]]) -> list[Any]:
        calls = [self._owner.submit(self, module, arguments, rows) for arguments, rows in pieces]
        self.end_turn()
        for call in calls:
            remaining = None if self.deadline_s is None else self.deadline_s - time.monotonic()
            in_time = call.done.wait(remaining)
            if not in_time or call.error is not None:
                for other in calls:
                    self._owner.withdraw(other)
                raise call.error or TimeoutError("the request's time is up")
        if module.shape.loops:
            self._in_turn = self._owner.turn.acquire(timeout=TURN_S)
        return [call.output for call in calls]


class SharedModule:
    """One method of one real module, and what the owner knows about calling it."""

    def __init__(
        self,
        owner: Owner,
        name: str,
        module: nn.Module,
        shape: CallShape,
        offload: Offload | None = None,
    ) -> None:
        self.owner, self.name, self.module, self.shape = owner, name, module, shape
        self._offload = offload
        self.last_forward_s = self.last_row_s = float("inf")
        self.memory = MemoryCap(gauge_of(self.device))
        self._row_caps: dict[Hashable, tuple[int, float]] = {}  # group → most rows, and until when
        self._names = tuple(inspect.signature(getattr(type(module), shape.method)).parameters)[1:]

    @property
    def device(self) -> torch.device:
        """Where the module runs, wherever it is now."""
        if self._offload:
            return self._offload.device
        return next((parameter.device for parameter in self.module.parameters()), torch.device("cpu"))

    def prepared(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[dict[str, Any], int]:
        """Arguments by name, one value per row, and the number of rows."""
        named = dict(zip(self._names, args, strict=False)) | kwargs
        arguments = {name: self._cast(v) for name, v in named.items() if name not in self.shape.ignored}
        for name, value in arguments.items():
            if name in self.shape.unbatched and isinstance(value, torch.Tensor) and value.dim() == 3:
                arguments[name] = value[0]  # Flux.2 repeats its ids for each row, and reads the first
        rows = next(
            len(value)
            for name, value in arguments.items()
            if isinstance(value, torch.Tensor) and value.dim() and name not in self.shape.unbatched
        )
        if "timestep" in arguments:
            arguments["timestep"] = self._timesteps(arguments["timestep"], rows)
        return arguments, rows

    def _cast(self, value: Any) -> Any:
        floats = isinstance(value, torch.Tensor) and value.is_floating_point()
        return value.to(self.shape.dtype) if floats and self.shape.dtype else value

    def _timesteps(self, timestep: Any, rows: int) -> torch.Tensor:
        # Schedulers give int64 or float32; modules compute in float32 either way, so all can share a forward.
        t = torch.as_tensor(timestep, device=self.device)
        t = t.to(torch.float32) if not t.is_floating_point() else t
        return t.expand(rows) if t.dim() == 0 else t

    def most_rows(self, group: Hashable, now_s: float) -> int:
        """Rows that one forward of such calls may have."""
        rows, until_s = self._row_caps.get(group, (self.shape.max_rows, now_s))
        return self.memory.most_rows(group, rows if now_s < until_s else self.shape.max_rows)

    def weights_bytes(self, group: Hashable, rows: int, share: float) -> int | None:
        """The share of what such a forward leaves free; None for what is no loop, or comes and goes."""
        if not self.shape.loops or self._offload:
            return None
        return int(share * self.memory.spare_bytes(group, rows))

    def cap_rows(self, group: Hashable, rows: int, now_s: float) -> None:
        """Remember for a while that more rows than this do not fit into the device's memory."""
        self._row_caps = {g: cap for g, cap in self._row_caps.items() if now_s < cap[1]}
        self._row_caps[group] = max(1, rows), now_s + MEMORY_CAP_S

    def group(self, arguments: dict[str, Any]) -> tuple[Any, ...]:
        """Calls with equal groups can share a forward."""
        keys = (self._key(name, value) for name, value in sorted(arguments.items()))
        return self.name, self.shape.method, *keys

    def _key(self, name: str, value: Any) -> tuple[Any, ...]:
        if isinstance(value, torch.Tensor):
            if name in self.shape.unbatched:
                content = value.cpu().contiguous().view(torch.uint8).numpy().tobytes()
                return name, value.dtype, tuple(value.shape), content
            return name, value.dtype, tuple(value.shape[1:])
        if isinstance(value, dict):
            return name, *(self._key(key, item) for key, item in sorted(value.items()))
        if isinstance(value, list | tuple):
            return name, *(self._key(str(i), item) for i, item in enumerate(value))
        return name, repr(value)

    def pieces(
        self, arguments: dict[str, Any], rows: int, *, most: int
    ) -> Iterator[tuple[dict[str, Any], int]]:
        """A call as several of at most `most` rows; of lists, one row at a time."""
        sizes = [min(most, rows - start) for start in range(0, rows, most)]
        parts = {}
        for name, value in arguments.items():
            if name in self.shape.unbatched:
                parts[name] = [value] * len(sizes)
            elif name in self.shape.listed:
                parts[name] = [row[None] for row in value]
            else:
                parts[name] = parted(value, sizes)
        for i, size in enumerate(sizes):
            yield {name: part[i] for name, part in parts.items()}, size

    def run(self, arguments: Sequence[dict[str, Any]], rows: Sequence[int]) -> list[Any]:
        """One forward for all; owner thread only."""
        together = {
            name: merged([a[name] for a in arguments], shared=name in self.shape.unbatched)
            for name in arguments[0]
        }
        together |= {name: list(together[name]) for name in self.shape.listed}
        if self._offload:
            self._offload.bring(self.module)
        started_s = time.monotonic()
        # Calling the module itself, not its forward, keeps its hooks.
        method = self.module if self.shape.method == "forward" else getattr(self.module, self.shape.method)
        output = method(**together)
        self.last_forward_s = time.monotonic() - started_s
        self.last_row_s = self.last_forward_s / sum(rows)
        return parted((torch.stack(output[0]),) if self.shape.listed else output, rows)


class Owner:
    """The thread that runs every shared module of an engine, and the calls that wait for it."""

    def __init__(self, mixed: Mixed, *, max_gather_s: float, weights_share: float = 0.0) -> None:
        self.forwards: Counter[str] = Counter()
        """Forwards run, by module name."""
        self.calls: Counter[str] = Counter()
        """Calls answered, by module name."""
        self.mix_adapters = True
        """False lets only calls with the same adapters share a forward: for comparison."""
        self.turn = threading.Lock()
        """Held by the request that is between two steps of its loop.

        Every operation of torch lets go of Python's lock for a moment, and threads that go on at once hand it
        around: eight took 12 ms from one forward to the next, one after the other 5 ms (two cores).
        """
        self._mixed, self._max_gather_s, self._weights_share = mixed, max_gather_s, weights_share
        self.numbers = itertools.count()
        """Of clients, in the order they came."""
        self._tickets = itertools.count()
        self._idle_since_s = 0.0  # the owner thread's alone
        self._changed = threading.Condition()
        # All below is guarded by _changed.
        self._waiting: dict[int, _Call] = {}
        self._clients: set[Client] = set()
        # When clients left, and what each called first: under load others take their places at once.
        self._left: deque[tuple[float, Thinking]] = deque()
        self._work: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._closed = False
        self._thread = threading.Thread(
            target=self._run, args=[torch.get_num_threads()], name="engine-owner", daemon=True
        )
        self._thread.start()

    @contextmanager
    def client(
        self, adapters: Any, deadline_s: float | None, cancelled: Cancelled = None
    ) -> Iterator[Client]:
        """A place for one request; `deadline_s` is on the clock of `time.monotonic`."""
        client = Client(self, adapters, deadline_s, cancelled)
        with self._changed:
            self._clients.add(client)
            if self._left:
                self._left.popleft()
        try:
            yield client
        finally:
            client.end_turn()
            with self._changed:
                self._clients.discard(client)
                if client.first_group is not None:
                    successor = Thinking(stage=LAST_STAGE, group=client.first_group)
                    self._left.append((time.monotonic(), successor))
                self._changed.notify_all()

    def submit(self, client: Client, module: SharedModule, arguments: dict[str, Any], rows: int) -> _Call:
        """Put a call in line."""
        now_s = time.monotonic()
        group = module.group(arguments)
        if not self.mix_adapters:
            group = (*group, *((use.rows, use.scale) for use in client.adapters))
        waiting = Waiting(
            ticket=next(self._tickets),
            group=group,
            stage=module.shape.stage,
            rows=rows,
            max_rows=module.most_rows(group, now_s),
            since_s=now_s,
            gather_s=min(self._max_gather_s, module.last_forward_s / 2),
            linger_s=0.0 if client.first_group else min(self._max_gather_s, module.last_row_s * LINGER_SHARE),
        )
        call = _Call(client, module, arguments, waiting)
        with self._changed:
            if self._closed:
                raise UnavailableError("the engine is closed")
            client.thinking = Thinking(stage=module.shape.stage, group=group)
            client.first_group = client.first_group or group
            self._waiting[waiting.ticket] = call
            self._changed.notify_all()
        return call

    def withdraw(self, call: _Call) -> None:
        """Take a call out of the line; one that runs already finishes unheard."""
        with self._changed:
            self._waiting.pop(call.waiting.ticket, None)
            self._changed.notify_all()

    def do(self, work: Callable[[], T]) -> T:
        """Run `work` in the owner thread, between two forwards; raises what it raises.

        Raises:
            UnavailableError: the owner is closed.
        """
        done: Future[T] = Future()
        with self._changed:
            if self._closed:
                raise UnavailableError("the engine is closed")
            self._work.append((work, done))
            self._changed.notify_all()
        return done.result()

    def close(self) -> None:
        """End the thread after its present forward; whoever waits gets an error."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self, threads: int) -> None:
        compute_with(threads)
        with torch.no_grad():
            while (turn := self._next()) is not None:
                turn()
                self._idle_since_s = time.monotonic()

    def _next(self) -> Callable[[], None] | None:
        """What to do now; None at the end."""
        with self._changed:
            while not self._closed:
                if self._work:
                    return partial(_do, *self._work.popleft())
                now_s = time.monotonic()
                calls = [call.waiting for call in self._waiting.values()]
                busy = {call.client for call in self._waiting.values()}
                while self._left and now_s - self._left[0][0] > self._max_gather_s:
                    self._left.popleft()
                thinking = [client.thinking for client in self._clients - busy]
                thinking += [successor for _, successor in self._left]
                decision = choose(calls, thinking, now_s=now_s, idle_since_s=self._idle_since_s)
                if isinstance(decision, Run):
                    batch = [self._waiting.pop(ticket) for ticket in decision.tickets]
                    # Always in the same order: the row pool remembers the mix of the last forward.
                    return partial(self._answer, sorted(batch, key=lambda call: call.client.number))
                self._changed.wait(None if decision is None else decision.at_s - now_s)
            closed = UnavailableError("the engine was closed")
            for call in self._waiting.values():
                call.error = closed
                call.done.set()
            self._waiting.clear()
            for _, done in self._work:
                done.set_exception(closed)
            return None

    def _answer(self, batch: list[_Call]) -> None:
        error = self._tried(batch)
        if isinstance(error, torch.OutOfMemoryError):
            self._answer_smaller(batch)
        elif error is not None and len(batch) > 1:
            # One call must not take the others down, nor may they see its error: each runs alone.
            for call in batch:
                self._answer([call])
        elif error is not None:
            batch[0].error = error
        for call in batch:
            call.done.set()

    def _tried(self, batch: list[_Call]) -> Exception | None:
        """Run the calls' forward; what it raised, if it did."""
        try:
            self._forward(batch)
        except torch.OutOfMemoryError:
            # Not the error itself: its frames hold the very tensors that did not fit.
            return torch.OutOfMemoryError()
        except Exception as error:
            return error
        return None

    def _answer_smaller(self, batch: list[_Call]) -> None:
        """After a forward that did not fit into memory: again, with at most half its rows."""
        module, group, now_s = batch[0].module, batch[0].waiting.group, time.monotonic()
        rows = min(sum(call.waiting.rows for call in batch), module.most_rows(group, now_s))
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if rows == len(batch) == 1:
            batch[0].error = InputError(
                "a single image of this size does not fit into the server's memory",
                hint="ask for a smaller one",
                param="size",
            )
            return
        module.cap_rows(group, rows // 2, now_s)
        half = len(batch) // 2
        for part in [batch[:half], batch[half:]] if half else [batch]:
            self._answer(part)

    def _forward(self, batch: list[_Call]) -> None:
        module, group = batch[0].module, batch[0].waiting.group
        calls = [(call.client.adapters, call.arguments, call.waiting.rows) for call in batch]
        most = module.most_rows(group, time.monotonic())
        if len(batch) == 1 and batch[0].waiting.rows > most:
            adapters, arguments, rows = calls[0]
            pieces = module.pieces(arguments, rows, most=most)
            outputs = [self._outputs(module, group, [(adapters, *piece)])[0] for piece in pieces]
            batch[0].output = merged(outputs)
        else:
            for call, output in zip(batch, self._outputs(module, group, calls), strict=True):
                call.output = output
        self.calls[module.name] += len(batch)

    def _outputs(
        self, module: SharedModule, group: Hashable, calls: Sequence[tuple[Any, dict[str, Any], int]]
    ) -> list[Any]:
        """One forward for all of `calls`: (adapters, arguments, rows) of each."""
        rows = [rows for _, _, rows in calls]
        weights_bytes = module.weights_bytes(group, sum(rows), self._weights_share)
        with (
            # First, since weights that are made here and stay are no part of what the forward takes.
            self._mixed([(adapters, rows) for adapters, _, rows in calls], weights_bytes),
            module.memory.forward(group, sum(rows)),
        ):
            outputs = module.run([arguments for _, arguments, _ in calls], rows)
        self.forwards[module.name] += 1
        return outputs


def _do(work: Callable[[], T], done: Future[T]) -> None:
    try:
        done.set_result(work())
    except BaseException as error:
        done.set_exception(error)
