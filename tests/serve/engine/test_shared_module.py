from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import nn

from hubctl.errors import InputError, UnavailableError
from serve.engine.proxy import proxy
from serve.engine.shared_module import MEMORY_CAP_S, CallShape, Owner, SharedModule


class Toy(nn.Module):
    """A denoiser in miniature; a gate lets a test hold its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.config, self.dtype, self.device = {"toy": True}, torch.float32, torch.device("cpu")
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.threads: set[str] = set()
        self.batches: list[int] = []
        self.memory_rows = 1000

    def forward(
        self,
        sample: torch.Tensor,
        timestep: Any,
        extra: dict[str, torch.Tensor] | None = None,
        ids: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        self.threads.add(threading.current_thread().name)
        self.batches.append(len(sample))
        if len(sample) > self.memory_rows:
            raise torch.OutOfMemoryError
        self.entered.set()
        assert self.gate.wait(10)
        if (sample == 13).any():
            raise ValueError("thirteen")
        shift = extra["shift"] if extra else 0
        shift = shift + (0 if ids is None else ids.sum())
        y = self.scale * sample + timestep[:, None] + shift
        return {"y": y, "pair": (y, None)} if return_dict else (y,)


@contextmanager
def _no_mix(calls: Sequence[tuple[Any, int]], weights_bytes: int | None) -> Iterator[None]:
    yield


@contextmanager
def _owner(max_gather_s: float = 0.5, max_rows: int = 100) -> Iterator[tuple[Owner, Toy, SharedModule]]:
    owner, toy = Owner(_no_mix, max_gather_s=max_gather_s), Toy()
    shape = CallShape(stage=1, max_rows=max_rows, unbatched=frozenset({"ids"}))
    try:
        yield owner, toy, SharedModule(owner, "toy", toy, shape)
    finally:
        toy.gate.set()
        owner.close()


_Call = tuple[tuple[Any, ...], dict[str, Any]]


def _together(owner: Owner, shared: SharedModule, calls: Sequence[_Call]) -> list[Any]:
    """Make the calls from as many clients at once; errors are returned in their place."""
    ready = threading.Barrier(len(calls))

    def one(call: _Call) -> Any:
        with owner.client((), None) as client:
            ready.wait()
            try:
                return proxy(client, shared)(*call[0], **call[1])
            except ValueError as error:
                return error

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(one, calls))


def test_calls_share_a_forward_and_get_their_own_rows() -> None:
    with _owner() as (owner, toy, shared):
        calls: list[_Call] = [
            ((torch.full((n, 3), float(n)), t), {}) for n, t in [(1, 5), (2, 7.5), (3, torch.tensor(9))]
        ]
        outputs = _together(owner, shared, calls)
        for (n, t), output in zip([(1, 5), (2, 7.5), (3, 9)], outputs, strict=True):
            assert torch.equal(output["y"], torch.full((n, 3), 2.0 * n + t))
            assert torch.equal(output["pair"][0], output["y"])
            assert output["pair"][1] is None
        assert toy.batches == [6]
        assert toy.threads == {"engine-owner"}
        assert (owner.forwards["toy"], owner.calls["toy"]) == (1, 3)


def test_how_long_calls_wait_for_clients_that_nobody_knows_of() -> None:
    with _owner(max_gather_s=0.02) as (owner, _, shared), owner.client((), None) as client:
        arguments = shared.prepared((torch.zeros(1, 3), 0), {})
        shared.last_row_s = 0.05
        first = owner.submit(client, shared, *arguments)
        assert first.waiting.linger_s == pytest.approx(0.005)
        assert first.done.wait(10)
        shared.last_row_s = 0.05
        assert owner.submit(client, shared, *arguments).waiting.linger_s == 0
    with _owner(max_gather_s=0.02) as (owner, _, shared), owner.client((), None) as client:
        shared.last_row_s = 10.0
        assert owner.submit(client, shared, *arguments).waiting.linger_s == 0.02


def test_nested_arguments_are_merged_and_unbatched_ones_shared() -> None:
    with _owner() as (owner, toy, shared):
        ids = torch.tensor([1.0, 2.0])
        calls: list[_Call] = [
            ((torch.zeros(1, 3), 0), {"extra": {"shift": torch.full((1, 3), float(i))}, "ids": ids.clone()})
            for i in range(3)
        ]
        outputs = _together(owner, shared, calls)
        assert [float(o["y"][0, 0]) for o in outputs] == [3.0, 4.0, 5.0]
        assert toy.batches == [3]


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(((torch.zeros(1, 4), 0), {}), id="another shape"),
        pytest.param(((torch.zeros(1, 3, dtype=torch.float64), 0), {}), id="another dtype"),
        pytest.param(((torch.zeros(1, 3), 0), {"return_dict": False}), id="another flag"),
        pytest.param(((torch.zeros(1, 3), 0), {"ids": torch.ones(2)}), id="other shared values"),
    ],
)
def test_calls_that_differ_do_not_share(other: _Call) -> None:
    with _owner(max_gather_s=0.01) as (owner, toy, shared):
        _together(owner, shared, [((torch.zeros(1, 3), 0), {"ids": torch.zeros(2)}), other])
        assert toy.batches == [1, 1]


def test_a_call_with_too_many_rows_runs_in_pieces() -> None:
    with _owner(max_rows=4) as (owner, toy, shared):
        rows = torch.arange(10.0)[:, None].expand(10, 3)
        extra = {"shift": rows * 100}
        alone: _Call = ((rows, 1), {"extra": extra, "ids": torch.tensor([0.5, 0.5])})
        (output,) = _together(owner, shared, [alone])
        assert torch.equal(output["y"], 102 * rows + 2)
        assert torch.equal(output["pair"][0], output["y"])
        assert output["pair"][1] is None
        assert toy.batches == [4, 4, 2]
        assert (owner.forwards["toy"], owner.calls["toy"]) == (3, 1)


class Lister(nn.Module):
    """Takes and gives lists of rows, as Z-Image's transformer does."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[list[int]] = []

    def forward(self, x: list[torch.Tensor], t: torch.Tensor) -> tuple[list[torch.Tensor]]:
        self.batches.append([len(row) for row in x])
        return ([row.sum()[None] * 10 + t[i] for i, row in enumerate(x)],)


def test_rows_in_lists_share_forwards_with_rows_of_their_shape() -> None:
    lister = Lister()
    with _owner() as (owner, *_):
        shape = CallShape(stage=1, max_rows=100, listed=frozenset({"x"}))
        shared = SharedModule(owner, "lister", lister, shape)
        calls: list[_Call] = [
            (([torch.ones(2), torch.ones(3) * i], torch.tensor([float(i), float(i + 1)])), {})
            for i in range(3)
        ]
        for i, (rows,) in enumerate(_together(owner, shared, calls)):
            assert [float(row) for row in rows] == [20 + i, 30 * i + i + 1]
        assert sorted(row for batch in lister.batches for row in batch) == [2, 2, 2, 3, 3, 3]
        assert all(len(set(batch)) == 1 for batch in lister.batches)
        assert len(lister.batches) < 6


def test_a_failing_call_fails_alone() -> None:
    with _owner() as (owner, _, shared):
        calls: list[_Call] = [((torch.full((1, 3), value), 0), {}) for value in (1.0, 13.0, 3.0)]
        first, bad, last = _together(owner, shared, calls)
        assert isinstance(bad, ValueError)
        assert torch.equal(first["y"], torch.full((1, 3), 2.0))
        assert torch.equal(last["y"], torch.full((1, 3), 6.0))


def test_a_late_call_leaves_the_line() -> None:
    with _owner(max_gather_s=0) as (owner, toy, shared), ThreadPoolExecutor(1) as pool:
        toy.gate.clear()

        def hold() -> Any:
            with owner.client((), None) as client:
                return client.call(shared, (torch.zeros(1, 3), 0), {})

        held = pool.submit(hold)
        assert toy.entered.wait(10)
        with owner.client((), time.monotonic() + 0.02) as client, pytest.raises(TimeoutError):
            client.call(shared, (torch.zeros(1, 3), 0), {})
        toy.gate.set()
        assert held.result(10)["y"].shape == (1, 3)
        assert toy.batches == [1]


def test_who_waits_at_the_close_hears_of_it() -> None:
    with _owner(max_gather_s=0) as (owner, toy, shared), ThreadPoolExecutor(2) as pool:
        toy.gate.clear()

        def call() -> Any:
            with owner.client((), None) as client:
                return client.call(shared, (torch.zeros(1, 3), 0), {})

        running = pool.submit(call)
        assert toy.entered.wait(10)
        waiting = pool.submit(call)
        while not owner._waiting:
            time.sleep(0.001)
        closing = threading.Thread(target=owner.close)
        closing.start()
        toy.gate.set()
        closing.join(10)
        assert running.result(10)["y"].shape == (1, 3)
        with pytest.raises(UnavailableError):
            waiting.result(10)
        with pytest.raises(UnavailableError):
            call()


class Encoder(nn.Module):
    """Two methods; one gives a posterior, as a VAE's encode does."""

    config, dtype, device = None, torch.float32, torch.device("cpu")

    def encode(self, x: torch.Tensor) -> DiagonalGaussianDistribution:
        return DiagonalGaussianDistribution(torch.cat([x, x - 1], dim=1))

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        return z * 2


def test_one_proxy_leads_several_methods_to_the_owner() -> None:
    encoder = Encoder()
    with _owner(max_rows=100) as (owner, *_), owner.client((), None) as client:
        methods = [
            SharedModule(
                owner, "vae", encoder, CallShape(method=name, stage=0, max_rows=2, dtype=torch.float64)
            )
            for name in ("decode", "encode")
        ]
        stand_in = proxy(client, *methods)
        x = torch.arange(5.0).view(5, 1, 1, 1)
        assert torch.equal(stand_in.decode(x), x.double() * 2)
        posterior = stand_in.encode(x)
        assert torch.equal(posterior.mean, x.double())
        assert torch.equal(posterior.logvar, x.double() - 1)
        assert owner.forwards["vae"] == 6  # 2 + 2 + 1 rows, twice


def test_a_proxy_looks_like_the_module() -> None:
    with _owner() as (owner, toy, shared), owner.client((), None) as client:
        stand_in: Any = proxy(client, shared)
        assert isinstance(stand_in, Toy)
        assert type(stand_in).__name__ == "Toy"
        assert stand_in.config == {"toy": True}
        assert stand_in.dtype is torch.float32
        assert stand_in.scale is toy.scale
        assert list(stand_in.parameters()) == []  # nothing moves the real weights through it


def test_what_does_not_fit_into_memory_is_run_in_smaller_forwards() -> None:
    with _owner() as (owner, toy, shared):
        toy.memory_rows = 3
        calls: list[_Call] = [((torch.full((n, 2), float(n)), 0), {}) for n in (1, 2, 1, 1, 7)]
        for _ in range(2):
            toy.batches.clear()
            for (args, _kwargs), answer in zip(calls, _together(owner, shared, calls), strict=True):
                assert torch.equal(answer["y"], 2 * args[0])
        # The second time it is known: nothing larger than what fits is tried.
        assert max(toy.batches) <= toy.memory_rows
        toy.memory_rows = 0
        with owner.client((), None) as client, pytest.raises(InputError, match="does not fit"):
            proxy(client, shared)(torch.ones(2, 2), 0)
        toy.memory_rows = 1000
        with owner.client((), None) as client:
            assert torch.equal(proxy(client, shared)(torch.ones(2, 2), 0)["y"], torch.full((2, 2), 2.0))


def test_more_rows_are_tried_again_after_a_while() -> None:
    with _owner(max_rows=8) as (_, _, shared):
        shared.cap_rows("group", 3, now_s=100.0)
        assert shared.most_rows("group", now_s=100.0 + MEMORY_CAP_S - 1) == 3
        assert shared.most_rows("other", now_s=100.0) == 8
        assert shared.most_rows("group", now_s=100.0 + MEMORY_CAP_S) == 8


def test_a_client_that_has_left_calls_no_more() -> None:
    with _owner() as (owner, toy, shared):
        left = threading.Event()
        with owner.client((), None, left) as client:
            proxy(client, shared)(torch.ones(1, 2), 0)
            left.set()
            with pytest.raises(CancelledError):
                proxy(client, shared)(torch.ones(1, 2), 0)
        assert toy.batches == [1]


def test_a_request_gives_its_turn_back() -> None:
    """With its next call, and when it ends between two calls, in whatever way."""
    with _owner(max_gather_s=0) as (owner, toy, _):
        shared = SharedModule(owner, "toy", toy, CallShape(stage=1, max_rows=9, loops=True))
        with suppress(ZeroDivisionError), owner.client((), None) as client:
            for _ in range(2):
                proxy(client, shared)(torch.ones(1, 2), 0)
                assert owner.turn.locked()
            raise ZeroDivisionError
        assert not owner.turn.locked()
