"""How a training will go, worked out before it starts: pure, standard library only."""

from __future__ import annotations

import math
import random
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

SMALL_BASE_PX = 128
"""A base this size or smaller is a tiny model: it takes a higher rate and more images a step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Defaults:
    """The settings a task starts from."""

    steps: int
    batch_size: int
    learning_rate: float
    train_text_encoder: bool = False


_DEFAULTS = {
    ("text-to-image", True): Defaults(steps=400, batch_size=16, learning_rate=1e-3),
    ("text-to-image", False): Defaults(steps=1500, batch_size=4, learning_rate=1e-4),
    ("dreambooth", True): Defaults(steps=200, batch_size=4, learning_rate=5e-4),
    ("dreambooth", False): Defaults(steps=800, batch_size=2, learning_rate=1e-4),
    ("segmentation", True): Defaults(steps=300, batch_size=16, learning_rate=5e-3),
    ("segmentation", False): Defaults(steps=1500, batch_size=8, learning_rate=5e-4),
}

_PRESETS = {
    ("object", True): Defaults(steps=200, batch_size=4, learning_rate=5e-4),
    ("object", False): Defaults(steps=400, batch_size=4, learning_rate=2e-4),
    ("face", True): Defaults(steps=400, batch_size=2, learning_rate=5e-4, train_text_encoder=True),
    ("face", False): Defaults(steps=1200, batch_size=2, learning_rate=1e-4, train_text_encoder=True),
    ("style", True): Defaults(steps=300, batch_size=8, learning_rate=5e-4),
    ("style", False): Defaults(steps=1000, batch_size=4, learning_rate=1e-4),
}
"""dreambooth, by what is learnt. Steps, batch and the text encoder are those that
https://huggingface.co/blog/dreambooth found best; its rates are for full fine-tuning, LoRA's are 50 to 100
times as high (https://huggingface.co/blog/lora)."""

TEXT_ENCODER_PART = 0.5
"""Of the denoiser's rate, for the text encoder, which spoils sooner."""

WATCH_APART = 5
"""Steps between two looks at least: one takes as long as several steps of a large base."""

TOKEN_RATE = 5e-4
"""Of new tokens, whatever the denoiser's is: as in diffusers' script for textual inversion."""
TOKEN_PART = 0.5
"""Of all steps, in which new tokens train."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """All numbers of one training, none left open."""

    steps: int
    batch_size: int
    """Images in memory at once, of one process."""
    accumulation: int = 1
    """Batches whose gradients make one step."""
    processes: int = 1
    """Processes whose gradients are averaged, each with images and noise of its own."""
    schedule: str = "cosine"
    learning_rate: float
    train_text_encoder: bool = False
    text_encoder_lr: float = 0.0
    """Peak rate of the text encoders, where they train."""
    token_lr: float = TOKEN_RATE
    """Peak rate of new tokens' vectors, where there are some."""
    warmup_steps: int
    resolution_px: int
    rank: int
    alpha: float
    sample_steps: tuple[int, ...]
    """Steps after which a sample is drawn; 0 is the untouched base."""
    checkpoint_every: int = 0
    """Steps between two checkpoints; 0 writes one only when training is stopped."""

    @property
    def watch_every(self) -> int:
        """Steps between two looks at the held-out images: twenty in all, of a short training fewer."""
        return max(WATCH_APART, math.ceil(self.steps / 20))

    @property
    def token_steps(self) -> int:
        """Steps in which new tokens train; then the adapter goes on with what they have become."""
        return math.ceil(self.steps * TOKEN_PART)

    @property
    def checkpoint_steps(self) -> frozenset[int]:
        """Steps after which the state is written: the last one too, in case saving the adapter fails."""
        every = self.checkpoint_every
        return frozenset({*range(every, self.steps, every), self.steps}) if every else frozenset()

    @property
    def images_a_step(self) -> int:
        """Images that one optimizer step learns from."""
        return self.batch_size * self.accumulation * self.processes


def make_plan(
    *,
    task: str,
    native_px: int,
    steps: int | None,
    batch_size: int | None,
    learning_rate: float | None,
    resolution: int | None,
    warmup_fraction: float,
    rank: int,
    alpha: float | None,
    sample_every: int | None,
    accumulation: int = 1,
    processes: int = 1,
    schedule: str = "cosine",
    checkpoint_every: int | None = None,
    preset: str | None = None,
    train_text_encoder: bool | None = None,
    text_encoder_lr: float | None = None,
    token_lr: float | None = None,
    optimizer: str = "adamw",
) -> Plan:
    """Fill what the user left open from the task's or preset's defaults for a base of this size."""
    small = native_px <= SMALL_BASE_PX
    defaults = _PRESETS[preset, small] if preset else _DEFAULTS[task, small]
    steps = defaults.steps if steps is None else steps
    learning_rate = defaults.learning_rate if learning_rate is None else learning_rate
    with_text = defaults.train_text_encoder if train_text_encoder is None else train_text_encoder
    # Prodigy finds one rate for everything.
    one_rate = optimizer == "prodigy"
    if text_encoder_lr is None:
        text_encoder_lr = learning_rate * (1 if one_rate else TEXT_ENCODER_PART)
    if token_lr is None:
        token_lr = learning_rate if one_rate else TOKEN_RATE
    # Two looks by default: half way and at the end.
    every = math.ceil(steps / 2) if sample_every is None else sample_every
    return Plan(
        steps=steps,
        batch_size=defaults.batch_size if batch_size is None else batch_size,
        learning_rate=learning_rate,
        train_text_encoder=with_text,
        text_encoder_lr=text_encoder_lr if with_text else 0.0,
        token_lr=token_lr,
        warmup_steps=math.ceil(steps * warmup_fraction),
        resolution_px=native_px if resolution is None else resolution,
        rank=rank,
        alpha=float(rank if alpha is None else alpha),
        sample_steps=sample_steps(steps, every),
        accumulation=accumulation,
        processes=processes,
        schedule=schedule,
        # Ten by default: what is lost to a crash is a tenth at most.
        checkpoint_every=math.ceil(steps / 10) if checkpoint_every is None else checkpoint_every,
    )


def sample_steps(steps: int, every: int) -> tuple[int, ...]:
    """Steps after which to draw a sample: the base (0), each `every`, and the last; none for 0."""
    if every == 0:
        return ()
    return tuple(sorted({*range(0, steps, every), steps}))


def learning_rate_factor(step: int, steps: int, warmup_steps: int, schedule: str = "cosine") -> float:
    """Part of the peak rate used by `step` (from 0): a linear rise, then what `schedule` says.

    `constant` stays; the others fall to zero: `linear` evenly, `polynomial` by the square of what is left,
    `cosine` by half a cosine.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if steps <= warmup_steps:
        return 1.0
    if schedule == "constant":
        return 1.0
    progress = (step - warmup_steps) / (steps - warmup_steps)
    if schedule == "linear":
        return 1 - progress
    if schedule == "polynomial":
        return (1 - progress) ** 2
    return 0.5 * (1 + math.cos(math.pi * progress))


def batches(
    examples: int, batch_size: int, steps: int, seed: int, buckets: Sequence[Hashable] | None = None
) -> Iterator[tuple[int, ...]]:
    """Which examples each step sees: epochs, each in its own order, cut into full batches.

    Batches run across the epochs' borders, so every example is used equally often (but for those that wait
    for their batch to fill), also when there are fewer examples than a batch has places. With `buckets`, one
    for each example, those of a batch are of the same bucket.
    """
    if examples < 1:
        raise ValueError("there must be at least one example")
    order = random.Random(seed)
    waiting: dict[Hashable, list[int]] = {}
    done = 0
    while done < steps:
        for example in order.sample(range(examples), examples):
            queue = waiting.setdefault(buckets[example] if buckets else None, [])
            queue.append(example)
            if len(queue) == batch_size:
                yield tuple(queue)
                queue.clear()
                done += 1
                if done == steps:
                    return


def rank_seed(seed: int, rank: int) -> int:
    """What process `rank` draws from; the first from the seed itself, as a training in one process does."""
    return random.Random(f"{seed} {rank}").getrandbits(63) if rank else seed


def ema_keeps(step: int, most: float) -> float:
    """Part of itself that the running mean keeps after `step` steps: it begins short, and never above `most`.

    The warm-up of diffusers' `EMAModel`, so that the mean is not of the untrained start.
    """
    return min(most, step / (9 + step)) if step > 1 else 0.0


def time_left_s(steps_left: int, steps_per_s: float) -> float:
    """Seconds until the last step; infinite before anything was measured."""
    if steps_left <= 0:
        return 0.0
    return steps_left / steps_per_s if steps_per_s > 0 else math.inf


def smooth(values: list[float], window: int) -> list[float]:
    """Mean of each value with up to `window - 1` before it: the curve a person can read."""
    means = []
    total = 0.0
    for index, value in enumerate(values):
        total += value
        if index >= window:
            total -= values[index - window]
        means.append(total / min(index + 1, window))
    return means
