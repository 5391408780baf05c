"""Thousands of requests that cannot be served: each hears why, and the engine stays as it was."""

from __future__ import annotations

import gc
import random
import re
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch._subclasses.fake_tensor import FakeTensor

from hubctl.base_models import locate_base
from hubctl.errors import (
    AdapterError,
    AdapterMismatchError,
    InputError,
    IntegrityError,
    NotFoundError,
    UnavailableError,
)
from hubctl.refs import PinnedRef
from serve.engine.core import Core
from serve.engine.generate import ImageEngine
from serve.engine.requests import ImageRequest, LoraUse, SegmentRequest
from serve.engine.segment import SegmentEngine
from tests.serve import reference, segmenters, tiny, tiny_pipelines

THREADS = 4
ROWS = 64
PET = {0: "pet", 1: "border", 2: "background"}
WEIGHTS = "pytorch_lora_weights.safetensors"
LEFT = threading.Event()
LEFT.set()
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Bad:
    """One way of asking for what cannot be served."""

    ask: Callable[[int], Any]
    """Request number i; where adapters are refused, each request names another one."""
    error: type[Exception]
    message: str
    param: str | None = None
    left: bool = False
    """Its client has left already."""


def fetch(ref: PinnedRef) -> Path:
    """What `pull` is to the server: adapters by name, and the hub's own faults for some of them."""
    name = ref.repo_id.removeprefix("tests/").partition(".")[0]
    if name == "gone":
        raise NotFoundError("hub has no repository tests/gone")
    if name == "away":
        raise UnavailableError("cannot reach hub: no answer")
    if name == "swapped":
        raise IntegrityError("tests/swapped has other weights on hub than were asked for")
    return tiny.fetch(ref)


def uses(folder: Path, names: int) -> Callable[[int], LoraUse]:
    """The adapter in `folder`, under one of so many names: each is another adapter to the engine."""
    ref = tiny.pinned(folder)
    return lambda i: LoraUse(ref=replace(ref, repo_id=f"{ref.repo_id}.{i % names}"))


def absent(name: str) -> Callable[[int], LoraUse]:
    return lambda i: LoraUse(ref=PinnedRef(f"tests/{name}.{i}", "main", "c" * 40, "5" * 64))


def spoilt(sound: Path, name: str, change: Callable[[Tensors], Tensors]) -> Path:
    """A copy of the adapter `sound` with other tensors."""
    folder = sound.parent / name
    shutil.copytree(sound, folder)
    (weights,) = folder.glob("*.safetensors")
    with safe_open(weights, framework="pt") as file:
        metadata = file.metadata()
    save_file(change(load_file(weights)), weights, metadata=metadata)
    return folder


def with_nan(tensors: Tensors) -> Tensors:
    name = next(name for name in tensors if "lora_A" in name)
    return tensors | {name: tensors[name] * float("nan")}


def wider(tensors: Tensors) -> Tensors:
    return {key: value.repeat(1, 2) if "lora_A" in key else value for key, value in tensors.items()}


def huger(tensors: Tensors) -> Tensors:
    return {key: value * 1e30 if value.is_floating_point() else value for key, value in tensors.items()}


def with_unknown(tensors: Tensors) -> Tensors:
    return tensors | {"mystery.weight": torch.ones(2)}


@dataclass(frozen=True)
class Health:
    """What an engine holds while nobody asks for anything."""

    rows_free: int
    resident: frozenset[PinnedRef]
    leased: int
    running: int
    queued: int
    clients: int
    calls: int
    loading: int
    refused: int
    """Adapters that are remembered as refused."""
    threads: frozenset[int | None]

    @classmethod
    def of(cls, core: Core) -> Health:
        info, owner, residency = core.info(), core.owner, core.residency
        return cls(
            info.rows_free,
            frozenset(info.resident),
            sum(residency.leases(ref) for ref in info.resident),
            info.running,
            info.queued,
            len(owner._clients),
            len(owner._waiting),
            len(residency._loading) + len(residency._line),
            len(residency._refused),
            frozenset(thread.ident for thread in threading.enumerate()),
        )


def held() -> tuple[int, int]:
    """What is alive, in objects and in bytes of tensors: whatever a request leaves behind shows in either.

    Unlike the memory that the process takes from the system, they do not depend on the allocators' habits.
    """
    gc.collect()
    # Those that tracing leaves behind (another test's compiling) have no memory, and refuse to be asked.
    tensors = (
        each
        for each in gc.get_objects()
        if issubclass(type(each), torch.Tensor) and not issubclass(type(each), FakeTensor)
    )
    return sys.getallocatedblocks(), sum(tensor.nbytes for tensor in tensors)


def attempt(serve: Callable[..., Any], case: Bad, number: int) -> str | None:
    """Why the request was not refused as it should be."""
    try:
        serve(case.ask(number), LEFT if case.left else None)
    except Exception as error:
        right = (
            type(error) is case.error
            and re.search(case.message, str(error))
            and getattr(error, "param", None) == case.param
        )
        return None if right else f"{case.message}: {type(error).__name__}({error})"
    return f"{case.message}: served"


def soak(
    core: Core,
    serve: Callable[..., Any],
    cases: Sequence[Bad],
    good: Callable[[], None],
    *,
    requests: int,
    each_good: int,
) -> None:
    """Send bad requests from several threads, in an order by chance, with a good one among `each_good`."""
    chance = random.Random(0)
    numbers = range(requests)
    chosen = [chance.choice(cases) for _ in numbers]

    def one(number: int) -> str | None:
        if number % each_good == 0:
            good()
        return attempt(serve, chosen[number], number)

    def send(part: range) -> None:
        with ThreadPoolExecutor(THREADS) as pool:
            wrong = [why for why in pool.map(one, part) if why]
        assert not wrong, wrong[:5]
        good()  # the row pool remembers the last mix: let it be the same whenever memory is counted

    good()
    # The memory of refused adapters has to be full before anything is counted.
    send(numbers[: requests // 2])
    before, (objects, tensor_bytes) = Health.of(core), held()
    send(numbers[requests // 2 : -requests // 4])
    objects_between, _ = held()
    send(numbers[-requests // 4 :])
    after, (objects_after, tensor_bytes_after) = Health.of(core), held()
    assert after == before
    assert (before.leased, before.running, before.queued, before.clients, before.calls, before.loading) == (
        0,
    ) * 6
    # What requests leave behind comes with each of them; what the interpreter caches comes once.
    grown = min(objects_between - objects, objects_after - objects_between)
    assert grown < requests / 20, "something is kept of the requests"
    assert tensor_bytes_after <= tensor_bytes * 1.01


@pytest.fixture(scope="module")
def image_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ImageEngine, Path]]:
    base = tiny_pipelines.write_pipeline(tmp_path_factory.mktemp("bad") / "base", "sd1")
    engine = ImageEngine(locate_base(str(base)), tiny.engine_config(total_rows=ROWS), fetch)
    yield engine, base
    engine.close()


def image_cases(base: Path) -> tuple[LoraUse, dict[str, Bad]]:
    """An adapter that works, and everything that does not."""
    folder = base.parent

    def lora(name: str, **settings: Any) -> Path:
        return tiny.write_lora(folder / name, base, **{"seed": 1, "rank": 4} | settings)

    sound = lora("sound")
    other_base = tiny_pipelines.write_pipeline(folder / "sdxl", "sdxl")
    other = tiny.write_lora(folder / "other", other_base, seed=2, rank=4)
    huge = LoraUse(ref=tiny.pinned(lora("huge", strength=1e18)))
    use = LoraUse(ref=tiny.pinned(sound))
    ask = ImageRequest(prompt="a red apple", seed=7, num_inference_steps=2)

    def fields(message: str, param: str, **changes: Any) -> Bad:
        return Bad(lambda i: replace(ask, **changes), InputError, message, param)

    def adapter(error: type[Exception], message: str, of: Callable[[int], LoraUse]) -> Bad:
        return Bad(lambda i: replace(ask, loras=(use, of(i))), error, message)

    def refused(error: type[Exception], message: str, where: Path) -> Bad:
        return adapter(error, rf"^adapter tests/{where.name}\.\d+: .*{message}", uses(where, 10_000))

    return use, {
        "nan": refused(AdapterError, "NaN or infinity", spoilt(sound, "nan", with_nan)),
        "shape": refused(AdapterMismatchError, "does not fit", spoilt(sound, "wider", wider)),
        "rank": refused(AdapterError, r"rank 1,025 \(limit 1,024\)", lora("rank", rank=1025)),
        "rows": refused(AdapterError, r"takes 100 rows \(this server has 63\)", lora("rows", rank=100)),
        "keys": refused(AdapterError, "mystery", spoilt(sound, "keys", with_unknown)),
        "other base": refused(AdapterMismatchError, "does not fit", other),
        "gone": adapter(NotFoundError, "no repository tests/gone", absent("gone")),
        "away": adapter(UnavailableError, "cannot reach", absent("away")),
        "swapped": adapter(IntegrityError, "other weights", absent("swapped")),
        "tokens": fields("has 42 tokens, this base reads 32", "prompt", prompt="a" * 40),
        "characters": fields("longer than 10,000", "prompt", prompt="a" * 10_001),
        "surrogate": fields(r"holds \\ud83c, half", "prompt", prompt="an \ud83c"),
        "not divisible": fields("height 36 is not a multiple of 8", "height", height=36),
        "too large": fields("width 1048576 is out of range", "width", width=1 << 20),
        "no steps": fields("num_inference_steps 0 is", "num_inference_steps", num_inference_steps=0),
        "steps": fields("num_inference_steps 10000 is", "num_inference_steps", num_inference_steps=10_000),
        "lcm": fields(
            "LCMScheduler cannot do 51", "num_inference_steps", num_inference_steps=51, scheduler="lcm"
        ),
        "pndm": fields(
            "PNDMScheduler cannot do 3", "num_inference_steps", num_inference_steps=3, scheduler="pndm"
        ),
        "scheduler": fields("no scheduler 'magic'", "scheduler", scheduler="magic"),
        "no images": fields("n 0 is out of range", "n", num_images=0),
        "seed": fields("seed -1 is out of range", "seed", seed=-1),
        "scale": fields(r"scale 1000000000.0 of tests/sound is", "loras", loras=(replace(use, scale=1e9),)),
        "nan scale": fields(
            "scale nan of tests/sound is", "loras", loras=(replace(use, scale=float("nan")),)
        ),
        "many": fields("9 adapters in one request", "loras", loras=(use,) * 9),
        "nan image": Bad(
            lambda i: replace(ask, num_inference_steps=1, loras=(huge,)), AdapterError, "came out as NaN"
        ),
        "late": Bad(lambda i: replace(ask, loras=(use,), timeout_s=0.0), TimeoutError, "time is up"),
        "left": Bad(lambda i: replace(ask, loras=(use,)), CancelledError, "client has left", left=True),
    }


def test_ten_thousand_bad_image_requests(image_engine: tuple[ImageEngine, Path]) -> None:
    engine, base = image_engine
    use, cases = image_cases(base)
    request = ImageRequest(prompt="dog", seed=3, num_inference_steps=2, scheduler="euler", loras=(use,))
    want = reference.images(base, request)
    first = engine.generate(request).images[0]

    def good() -> None:
        assert np.abs(engine.generate_floats(request) - want).max() <= reference.TOLERANCE

    for name, case in cases.items():  # alone, so that a wrong message is easily found
        assert attempt(engine.generate, case, 0) is None, name
    soak(engine._core, engine.generate, list(cases.values()), good, requests=10_000, each_good=100)
    assert np.abs(engine.generate(request).images[0].astype(int) - first).max() <= 1


def test_two_thousand_bad_images_to_segment(tmp_path: Path) -> None:
    base = segmenters.write_segmenter(tmp_path / "base", "segformer")
    segformer = segmenters.SEGMENTERS["segformer"]
    sound = segmenters.write_adapter(
        tmp_path / "sound", base, seed=1, targets=segformer.targets[:2], heads=(segformer.head,), labels=PET
    )
    huge = LoraUse(ref=tiny.pinned(spoilt(sound, "huge", huger)))
    use = LoraUse(ref=tiny.pinned(sound))
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    ask = SegmentRequest(image=image, adapter=use)

    def picture(message: str, wrong: np.ndarray) -> Bad:
        return Bad(lambda i: replace(ask, image=wrong), InputError, message, "image")

    def adapter(error: type[Exception], message: str, of: Callable[[int], LoraUse]) -> Bad:
        return Bad(lambda i: replace(ask, adapter=of(i)), error, message)

    cases = {
        "nan": adapter(AdapterError, "NaN or infinity", uses(spoilt(sound, "nan", with_nan), 20)),
        "shape": adapter(AdapterMismatchError, "does not fit", uses(spoilt(sound, "wider", wider), 20)),
        "keys": adapter(AdapterError, "mystery", uses(spoilt(sound, "keys", with_unknown), 20)),
        "gone": adapter(NotFoundError, "no repository tests/gone", absent("gone")),
        "grey": picture("not RGB", image[..., 0]),
        "floats": picture("not RGB", image.astype(np.float32)),
        "nothing": picture("not RGB", image[:0]),
        "scale": Bad(
            lambda i: replace(ask, adapter=replace(use, scale=1e9)),
            InputError,
            "scale 1000000000.0 of",
            "loras",
        ),
        "nan labels": adapter(AdapterError, "came out as NaN", lambda i: huge),
        "late": Bad(lambda i: replace(ask, timeout_s=0.0), TimeoutError, "time is up"),
        "left": Bad(lambda i: ask, CancelledError, "client has left", left=True),
    }
    engine = SegmentEngine(locate_base(str(base)), tiny.engine_config(total_rows=ROWS), fetch)
    want = reference.logits(base, ask, PET)

    def good() -> None:
        assert float((engine.logits(ask) - want).abs().max()) <= reference.TOLERANCE

    try:
        for name, case in cases.items():
            assert attempt(engine.segment, case, 0) is None, name
        soak(engine._core, engine.segment, list(cases.values()), good, requests=2_000, each_good=20)
    finally:
        engine.close()
