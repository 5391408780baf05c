from __future__ import annotations

import gc
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from hubctl.base_models import BaseModel, locate_base
from hubctl.errors import AdapterError, AdapterMismatchError, InputError, OverloadedError
from hubctl.refs import PinnedRef
from serve.engine.generate import ImageEngine
from serve.engine.pipelines import work_of
from serve.engine.requests import ImageRequest, LoraUse, SegmentRequest
from serve.engine.schedulers import SCHEDULERS
from tests.serve import reference, tiny, tiny_pipelines
from tests.serve.waiting import until

TOLERANCE = 1e-4


@dataclass(frozen=True)
class World:
    """A tiny base, adapters of every kind for it, and an engine."""

    base: BaseModel
    engine: ImageEngine
    adapters: dict[str, PinnedRef]

    def use(self, name: str, scale: float = 1.0) -> LoraUse:
        return LoraUse(ref=self.adapters[name], scale=scale)

    def truth(self, request: ImageRequest) -> np.ndarray:
        return reference.images(self.base.path, request)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("generate")
    base = tiny_pipelines.write_pipeline(folder / "base", "sd1")
    made = [
        tiny.write_lora(folder / "attention", base, seed=1, rank=4),
        tiny.write_lora(folder / "wide", base, seed=2, rank=9, alpha=18, targets=("to_q", "to_v")),
        tiny.write_lora(
            folder / "locon",
            base,
            seed=3,
            rank=5,
            targets=(*tiny.ATTENTION, *tiny.CONVOLUTIONS),
            strength=0.2,
        ),
        tiny.write_lora(folder / "text", base, seed=4, rank=4, text_targets=tiny.TEXT),
        tiny.write_lora(
            folder / "text-old", base, seed=5, rank=2, text_targets=tiny.TEXT, text_prefix="text_model."
        ),
        tiny.write_lora(folder / "rslora", base, seed=6, rank=4, alpha=2, use_rslora=True),
        tiny.write_lora(
            folder / "dora",
            base,
            seed=8,
            rank=4,
            alpha=6,
            use_dora=True,
            targets=(*tiny.ATTENTION, *tiny.CONVOLUTIONS),
        ),
        tiny.write_lora(
            folder / "pattern",
            base,
            seed=7,
            rank=4,
            rank_pattern={"to_q": 2},
            alpha_pattern={"to_v": 12},
        ),
    ]
    located = locate_base(str(base))
    engine = ImageEngine(located, tiny.engine_config(total_rows=64), tiny.fetch)
    yield World(located, engine, {path.name: tiny.pinned(path) for path in made})
    info = engine.info()
    engine.close()
    # Whatever the tests did, nothing is held and the rows add up.
    assert (info.running, info.queued, info.rows_total) == (0, 0, 63)
    assert all(engine._core.residency.leases(ref) == 0 for ref in info.resident)


def ask(prompt: str = "a red apple", seed: int = 7, **changes: object) -> ImageRequest:
    return replace(
        ImageRequest(prompt=prompt, seed=seed, num_inference_steps=4),
        **changes,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    "name", ["attention", "wide", "locon", "text", "text-old", "rslora", "dora", "pattern"]
)
def test_one_adapter_is_what_diffusers_makes_of_it(world: World, name: str) -> None:
    request = ask(loras=(world.use(name, 0.8),))
    want = world.truth(request)
    assert np.abs(want - world.truth(ask())).max() > 20 * TOLERANCE  # the adapter shows
    assert np.abs(world.engine.generate_floats(request) - want).max() <= TOLERANCE


def test_the_base_alone_is_what_diffusers_makes(world: World) -> None:
    request = ask(seed=11)
    assert np.abs(world.engine.generate_floats(request) - world.truth(request)).max() <= TOLERANCE


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_scheduler(world: World, scheduler: str) -> None:
    request = ask(scheduler=scheduler, loras=(world.use("attention"),))
    assert np.abs(world.engine.generate_floats(request) - world.truth(request)).max() <= TOLERANCE


def test_every_scheduler_at_once(world: World) -> None:
    """From noise and from an image, whose noise a scheduler adds in its own way; steps differ too."""
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    no_image_and_image: tuple[dict[str, Any], ...] = (
        {},
        {"image": image, "strength": 0.7, "loras": (world.use("wide"),)},
    )
    requests = [
        ask(seed=i, scheduler=name, num_inference_steps=4 + i % 3, **changes)
        for i, name in enumerate([*SCHEDULERS, None])
        for changes in no_image_and_image
    ]
    reference.compare(world.engine, requests, [world.truth(request) for request in requests])
    assert world.engine.owner.forwards["unet"] < world.engine.owner.calls["unet"]


def test_two_adapters_in_one_request(world: World) -> None:
    request = ask(loras=(world.use("attention", 0.7), world.use("locon", -0.5)))
    assert np.abs(world.engine.generate_floats(request) - world.truth(request)).max() <= TOLERANCE


def test_several_images_are_those_of_their_seeds(world: World) -> None:
    request = ask(num_images=3, scheduler="euler_a", loras=(world.use("wide"),))
    floats = world.engine.generate_floats(request)
    assert np.abs(floats - world.truth(request)).max() <= TOLERANCE
    result = world.engine.generate(request)
    assert result.seeds == (7, 8, 9)
    for image, seed in zip(result.images, result.seeds, strict=True):
        alone = world.engine.generate(replace(request, num_images=1, seed=seed)).images[0]
        assert image.dtype == np.uint8
        assert np.abs(image.astype(int) - alone.astype(int)).max() <= 1


def test_more_images_than_fit_a_forward(world: World) -> None:
    config = tiny.engine_config(total_rows=32, max_batch_rows=3, max_decode_rows=2)
    engine = ImageEngine(world.base, config, tiny.fetch)
    request = ask(num_images=5, image=np.full((32, 32, 3), 99, np.uint8), loras=(world.use("locon"),))
    try:
        assert np.abs(engine.generate_floats(request) - world.truth(request)).max() <= TOLERANCE
        assert (engine.owner.calls["vae"], engine.owner.forwards["vae"]) == (5 + 1, 5 + 3)
        assert engine.owner.forwards["unet"] == 4 * engine.owner.calls["unet"]
    finally:
        engine.close()


def different(world: World) -> list[ImageRequest]:
    return [
        ask("red apple", 1, num_inference_steps=8, guidance_scale=7.5),
        ask("dog", 2, num_inference_steps=3, guidance_scale=1.0, loras=(world.use("attention"),)),
        ask("cat", 3, num_inference_steps=6, scheduler="euler", loras=(world.use("wide", 0.5),)),
        ask("car", 4, num_inference_steps=5, scheduler="dpm++_2m", loras=(world.use("locon", 1.2),)),
        ask("hat", 5, num_inference_steps=4, scheduler="unipc", loras=(world.use("text", -1.0),)),
        ask(
            "sun",
            6,
            num_inference_steps=7,
            scheduler="pndm",
            negative_prompt="moon",
            guidance_scale=3.0,
            loras=(world.use("dora", 0.7),),
        ),
        ask("bee", 7, num_images=2, scheduler="euler_a", loras=(world.use("rslora"), world.use("wide", 0.3))),
        ask("owl", 8, num_inference_steps=4, scheduler="lcm", loras=(world.use("pattern", 2.0),)),
    ]


def test_eight_different_requests_at_once(world: World) -> None:
    requests = different(world)
    owner = world.engine.owner
    owner.forwards.clear()
    owner.calls.clear()
    with ThreadPoolExecutor(len(requests)) as pool:
        got = list(pool.map(world.engine.generate_floats, requests))
    for request, images in zip(requests, got, strict=True):
        want = world.truth(request)
        assert np.abs(images - want).max() <= TOLERANCE, request
        assert np.abs((images * 255).round() - (want * 255).round()).max() <= 1, request
    assert owner.calls["unet"] >= 8 + 3 + 6 + 5 + 4 + 7 + 4 + 4
    assert owner.forwards["unet"] <= owner.calls["unet"] / 2
    assert owner.forwards["text_encoder"] < owner.calls["text_encoder"]


def test_requests_in_all_orders_keep_their_pixels(world: World) -> None:
    """Forty requests, eight at a time, in whatever company: each is what it is alone."""
    requests = [
        replace(request, prompt=request.prompt * (1 + i % 3), num_images=1)
        for i, request in enumerate(different(world) * 5)
    ]
    alone = [world.engine.generate_floats(request) for request in requests[:24]]
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(world.engine.generate_floats, requests))
    # Every 24 requests, prompts and the rest of the request come in the same pairs again.
    assert all(np.abs(g - alone[i % 24]).max() <= TOLERANCE for i, g in enumerate(got))


def test_sizes_do_not_mix_but_are_served(world: World) -> None:
    requests = [ask(seed=i, width=32 + 8 * (i % 2), height=32, loras=(world.use("locon"),)) for i in range(4)]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(world.engine.generate_floats, requests))
    for request, images in zip(requests, got, strict=True):
        assert images.shape[1:3] == (request.height, request.width)
        assert np.abs(images - world.truth(request)).max() <= TOLERANCE


def test_one_of_eight_that_fails_leaves_the_others_as_diffusers_makes_them(
    world: World, tmp_path: Path
) -> None:
    """Once its image is NaN; once the module raises for its sake, in the very forward that all share."""
    huge = LoraUse(
        ref=tiny.pinned(tiny.write_lora(tmp_path / "huge", world.base.path, seed=8, strength=1e18))
    )
    requests = different(world)[:7]
    truths = [world.truth(request) for request in requests]

    def attempt(request: ImageRequest) -> np.ndarray | Exception:
        try:
            return world.engine.generate_floats(request)
        except (AdapterError, ArithmeticError) as error:
            return error

    def raise_for_nan(module: object, args: object, output: Any) -> None:
        if not output[0].isfinite().all():
            raise ArithmeticError("a sample of the batch is NaN")

    def compare(error: type[Exception]) -> None:
        with ThreadPoolExecutor(8) as pool:
            *got, failed = pool.map(attempt, [*requests, ask(loras=(huge,))])
        assert isinstance(failed, error)
        for request, images, want in zip(requests, got, truths, strict=True):
            assert isinstance(images, np.ndarray), request
            assert np.abs(images - want).max() <= TOLERANCE, request
            assert np.abs((images * 255).round() - (want * 255).round()).max() <= 1, request

    compare(AdapterError)
    hook = world.engine._template.unet.register_forward_hook(raise_for_nan)
    try:
        compare(ArithmeticError)
    finally:
        hook.remove()


def test_a_bad_adapter_disturbs_nobody(world: World, tmp_path: Path) -> None:
    """Of eight at once, three fail, each with its reason; the others have the same pixels as without them."""
    good = different(world)[:5]
    quiet = [world.engine.generate(request).images[0] for request in good]

    nan = tmp_path / "nan"
    shutil.copytree(tiny.fetch(world.adapters["attention"]), nan)
    weights = nan / "pytorch_lora_weights.safetensors"
    tensors = load_file(weights)
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, weights)

    huge = tmp_path / "huge"
    tiny.write_lora(huge, world.base.path, seed=8, strength=1e18)

    other = tmp_path / "other"
    shutil.copytree(tiny.fetch(world.adapters["attention"]), other)
    weights = other / "pytorch_lora_weights.safetensors"
    save_file(
        {key: value.repeat(1, 2) if "lora_A" in key else value for key, value in load_file(weights).items()},
        weights,
    )

    bad = [ask(loras=(LoraUse(ref=tiny.pinned(folder)),)) for folder in (nan, huge, other)]

    def attempt(request: ImageRequest) -> object:
        try:
            return world.engine.generate(request).images[0]
        except AdapterError as error:
            return error

    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(attempt, [*good, *bad]))
    for before, after in zip(quiet, got[:5], strict=True):
        assert isinstance(after, np.ndarray)
        assert np.abs(before.astype(int) - after.astype(int)).max() <= 1
    assert "NaN or infinity" in str(got[5])
    assert "came out as NaN" in str(got[6])
    assert isinstance(got[7], AdapterMismatchError)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps 0 is out of range"),
        ({"num_inference_steps": 10_000}, "num_inference_steps 10000 is out of range"),
        ({"num_images": 0}, "n 0 is out of range"),
        ({"width": 36}, "width 36 is not a multiple of 8"),
        ({"height": 1 << 20}, "height 1048576 is out of range"),
        ({"guidance_scale": float("nan")}, "guidance_scale nan is out of range"),
        ({"seed": -1}, "seed -1 is out of range"),
        ({"scheduler": "magic"}, "no scheduler 'magic'"),
        ({"prompt": "a" * 10_001}, "longer than 10,000 characters"),
        ({"negative_prompt": "a\udf4e"}, r"negative prompt holds \\udf4e, half of a character"),
        ({"scheduler": "lcm", "num_inference_steps": 51}, "LCMScheduler cannot do 51 steps"),
        ({"scheduler": "pndm", "num_inference_steps": 3}, "PNDMScheduler cannot do 3 steps"),
    ],
)
def test_fields_out_of_range(world: World, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        world.engine.generate(ask(**changes))


@pytest.mark.parametrize("scheduler", [None, "pndm", "lcm", "euler"])
def test_steps_beyond_those_that_the_base_was_trained_on(world: World, scheduler: str | None) -> None:
    """Some schedulers would raise IndexError in their last step, others repeat timesteps."""
    engine = ImageEngine(world.base, tiny.engine_config(max_steps=5000), tiny.fetch)
    try:
        for steps in (1000, 1001):
            with pytest.raises(InputError, match=f"cannot do {steps} steps") as caught:
                engine.generate(ask(num_inference_steps=steps, scheduler=scheduler))
            assert caught.value.param == "num_inference_steps"
    finally:
        engine.close()


@pytest.mark.parametrize("scale", [1e9, float("nan"), float("-inf")])
def test_scales_out_of_range(world: World, scale: float) -> None:
    with pytest.raises(InputError, match="out of range"):
        world.engine.generate(ask(loras=(world.use("attention", scale),)))


def test_too_many_adapters(world: World) -> None:
    with pytest.raises(InputError, match="9 adapters in one request"):
        world.engine.generate(ask(loras=(world.use("attention"),) * 9))


def test_a_request_whose_time_is_up_leaves_nothing_behind(world: World) -> None:
    with pytest.raises(TimeoutError):
        world.engine.generate(ask(num_inference_steps=200, timeout_s=0.05, loras=(world.use("attention"),)))
    info = world.engine.info()
    assert (info.running, info.queued) == (0, 0)
    assert world.engine._core.residency.leases(world.adapters["attention"]) == 0


def test_this_base_does_not_segment(world: World) -> None:
    with pytest.raises(InputError, match="makes images"):
        world.engine.segment(SegmentRequest(image=np.zeros((8, 8, 3), np.uint8)))


def test_more_adapters_than_rows_take_turns(world: World) -> None:
    engine = ImageEngine(world.base, tiny.engine_config(total_rows=12), tiny.fetch)
    names = ["attention", "wide", "locon", "text", "rslora", "pattern"]
    requests = [ask(seed=i, loras=(world.use(name),)) for i, name in enumerate(names * 2)]
    try:
        with ThreadPoolExecutor(len(requests)) as pool:
            got = list(pool.map(engine.generate_floats, requests))
        for request, images in zip(requests[: len(names)], got, strict=False):
            assert np.abs(images - world.truth(request)).max() <= TOLERANCE
        with pytest.raises(InputError, match="13 rows together, the server has 11"):
            engine.generate(ask(loras=(world.use("attention"), world.use("wide"))))
    finally:
        engine.close()


def test_a_full_line_is_refused(world: World) -> None:
    engine = ImageEngine(world.base, tiny.engine_config(max_running=1, max_queued=0), tiny.fetch)
    try:
        with engine._core.admission.place(None), pytest.raises(OverloadedError):
            engine.generate(ask())
        assert engine.generate(ask()).images[0].shape == (32, 32, 3)
    finally:
        engine.close()
        gc.collect()


class Watch(threading.Event):
    """Nobody leaves; the engine asks for that at every call of a running request, which this notes."""

    def __init__(self, name: str, seen: list[str]) -> None:
        super().__init__()
        self._name, self._seen = name, seen

    def is_set(self) -> bool:
        self._seen.append(self._name)
        return False


def test_tenants_share_the_places_by_what_their_requests_take(world: World) -> None:
    engine = ImageEngine(world.base, tiny.engine_config(max_running=1, max_queued=8), tiny.fetch)
    large, small = ask(tenant="a", num_images=2), ask(tenant="b")
    seen: list[str] = []
    try:
        with ThreadPoolExecutor(5) as pool, engine._core.admission.place(None, tenant="someone else"):
            for i, request in enumerate([large, large, small, small, small]):
                pool.submit(engine.generate, request, Watch(f"{request.tenant}{i}", seen))
                until(lambda i=i: engine.info().queued > i)  # type: ignore[misc]
        # Two small ones for a large one, though all the large ones came first.
        assert list(dict.fromkeys(seen)) == ["a0", "b2", "b3", "a1", "b4"]
    finally:
        engine.close()


@pytest.mark.parametrize(
    ("pipeline", "changes", "work"),
    [
        (diffusers.StableDiffusionPipeline, {}, 50),
        (diffusers.StableDiffusionPipeline, {"num_images": 3, "num_inference_steps": 4}, 12),
        (diffusers.FluxPipeline, {"num_images": 2}, 56),
    ],
)
def test_work_is_images_times_steps(pipeline: type, changes: dict[str, Any], work: float) -> None:
    """What the request leaves open is the pipeline's own default: 50 steps, and 28 for Flux."""
    assert work_of(ImageRequest(prompt="a cat", seed=1, **changes), pipeline) == work
