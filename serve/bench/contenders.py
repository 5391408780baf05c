"""The ways of serving many adapters that are compared, all over one set of base weights.

Each peer gets a twin of the denoiser: its own modules around the same parameters, since peft changes the
modules it is given.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn

from hubctl.base_models import BaseModel
from hubctl.modeling.loading import load_segmenter
from serve.bench.adapters import fetch, pinned
from serve.bench.measure import Contender, Job
from serve.bench.shapes import Shape, randomise
from serve.engine.config import EngineConfig
from serve.engine.generate import ImageEngine
from serve.engine.requests import ImageRequest, LoraUse
from serve.engine.segment import SegmentEngine
from serve.engine.shared_module import Owner
from serve.engine.threads import one_core

BASE, BARE, MIXED, APART = (
    "base alone",
    "hubctl, no adapters",
    "hubctl, mixed",
    "hubctl, one adapter a forward",
)
SWITCHED, HOTSWAPPED, NAMED = "diffusers set_adapters", "diffusers hotswap", "peft adapter_names"
PROMPT = "a picture of a thing"
J = TypeVar("J", Job, Sequence[Job])


class Bench(ABC):
    """One base, its adapters, and everything that can serve them."""

    owner: Owner
    denoiser: nn.Module
    folders: Sequence[Path] = ()
    """The adapters; set them before the contenders are made."""

    @abstractmethod
    def contenders(self) -> list[Contender]:
        """All ways to serve; building the peers loads their adapters."""

    @abstractmethod
    def twin(self) -> tuple[nn.Module, Any]:
        """A denoiser without adapters or hooks, and the pipeline around it (None for a whole model)."""

    @abstractmethod
    def close(self) -> None:
        """End the engine."""

    @abstractmethod
    def _ask(self, job: Job) -> None:
        """One request to hubctl's engine."""

    def _own(self) -> list[Contender]:
        """The engine's own ways."""
        return [
            Contender(name=BARE, one=lambda job: self._ask(Job(adapter=None, seed=job.seed))),
            Contender(name=MIXED, one=self._ask),
            Contender(name=APART, one=self._ask),
        ]

    def _uses(self, job: Job) -> tuple[LoraUse, ...]:
        return () if job.adapter is None else (LoraUse(ref=pinned(self.folders[job.adapter])),)

    def _in_turn(self, serve: Callable[[J], None]) -> Callable[[J], None]:
        """A way to serve where one request, or batch, comes after the other.

        In the engine's own thread: what computes with all cores anywhere else would slow down both.
        """
        return lambda jobs: self.owner.do(lambda: serve(jobs))

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Let only calls with the same adapters share a forward: the policy of other servers."""
        self.owner.mix_adapters = False
        try:
            yield
        finally:
            self.owner.mix_adapters = True


class ImageBench(Bench):
    """Requests to a diffusion base: prompt to image, all steps."""

    def __init__(self, base: BaseModel, shape: Shape, config: EngineConfig) -> None:
        self._shape, self._config = shape, config
        self._engine = ImageEngine(base, config, fetch)
        self._pipeline = self._engine._template
        self.owner, self.denoiser = self._engine.owner, getattr(self._pipeline, shape.denoiser)
        if not shape.embedded:
            with one_core():
                randomise(self.denoiser, 0)

    def contenders(self) -> list[Contender]:
        """See `Bench.contenders`."""
        plain, adapted = self._pipeline_twin(), self._pipeline_twin()
        if self._config.compile != "off":
            self._engine.warm_up()
            getattr(plain, self._shape.denoiser).compile(backend=self._config.compile)
        for number, folder in enumerate(self.folders):
            adapted.load_lora_weights(folder, adapter_name=f"a{number}")
        return [
            Contender(name=BASE, together=self._in_turn(lambda jobs: self._call(plain, jobs))),
            *self._own(),
            Contender(name=SWITCHED, one=self._in_turn(lambda job: self._switched(adapted, job))),
            Contender(name=HOTSWAPPED, one=self._in_turn(self._hotswapped())),
            Contender(name=NAMED, together=self._in_turn(lambda jobs: self._named(adapted, jobs))),
        ]

    def twin(self) -> tuple[nn.Module, Any]:
        """See `Bench.twin`."""
        pipeline = self._pipeline_twin()
        return getattr(pipeline, self._shape.denoiser), pipeline

    def close(self) -> None:
        """End the engine."""
        self._engine.close()

    def _ask(self, job: Job) -> None:
        shape = self._shape
        self._engine.generate_floats(
            ImageRequest(
                prompt=PROMPT,
                seed=job.seed,
                width=shape.side_px,
                height=shape.side_px,
                num_inference_steps=shape.steps,
                guidance_scale=shape.guidance,
                loras=self._uses(job),
            )
        )

    def _call(self, pipeline: Any, jobs: Sequence[Job]) -> None:
        shape = self._shape
        pipeline(
            prompt=[PROMPT] * len(jobs),
            generator=[torch.Generator("cpu").manual_seed(job.seed) for job in jobs],
            width=shape.side_px,
            height=shape.side_px,
            num_inference_steps=shape.steps,
            guidance_scale=shape.guidance,
            output_type="np",
        )

    def _switched(self, pipeline: Any, job: Job) -> None:
        pipeline.set_adapters([f"a{job.adapter}"])
        self._call(pipeline, [job])

    def _hotswapped(self) -> Callable[[Job], None]:
        pipeline = self._pipeline_twin()
        pipeline.load_lora_weights(self.folders[0], adapter_name="only")

        def run(job: Job) -> None:
            pipeline.load_lora_weights(self.folders[job.adapter or 0], adapter_name="only", hotswap=True)
            self._call(pipeline, [job])

        return run

    def _named(self, pipeline: Any, jobs: Sequence[Job]) -> None:
        names = [f"a{job.adapter}" for job in jobs] * self._shape.rows_an_image
        with _adapter_names(getattr(pipeline, self._shape.denoiser), names):
            self._call(pipeline, jobs)

    def _pipeline_twin(self) -> Any:
        parts = {name: part for name, part in self._pipeline.components.items() if name != "image_encoder"}
        parts[self._shape.denoiser] = _twin_of(self.denoiser)
        if self._shape.pipeline == "StableDiffusionPipeline":
            parts["requires_safety_checker"] = False
        pipeline = type(self._pipeline)(**parts)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


class SegmentBench(Bench):
    """Requests to a segmentation base: pixels, prepared beforehand, to logits."""

    def __init__(self, base: BaseModel, shape: Shape, config: EngineConfig) -> None:
        self._engine = SegmentEngine(base, config, fetch)
        self.owner, self.denoiser = self._engine.owner, self._engine._model
        first = next(self.denoiser.parameters())
        self._pixels = torch.randn(1, 3, shape.side_px, shape.side_px).to(first.device, first.dtype)
        self._base, self._config = base, config

    def contenders(self) -> list[Contender]:
        """See `Bench.contenders`."""
        plain = self._model_twin()
        if self._config.compile != "off":
            self._engine.warm_up()
            plain.compile(backend=self._config.compile)
        adapted = PeftModel.from_pretrained(self._model_twin(), self.folders[0], "a0")
        for number, folder in enumerate(self.folders[1:], 1):
            adapted.load_adapter(folder, f"a{number}")
        adapted.eval()
        return [
            Contender(name=BASE, together=self._in_turn(lambda jobs: self._call(plain, jobs))),
            *self._own(),
            Contender(name=SWITCHED, one=self._in_turn(lambda job: self._switched(adapted, job))),
            Contender(name=NAMED, together=self._in_turn(lambda jobs: self._named(adapted, jobs))),
        ]

    def twin(self) -> tuple[nn.Module, Any]:
        """See `Bench.twin`."""
        return self._model_twin(), None

    def close(self) -> None:
        """End the engine."""
        self._engine.close()

    def _ask(self, job: Job) -> None:
        with one_core():
            self._engine.logits_of(self._pixels, self._uses(job)).sum().item()

    @torch.no_grad()
    def _call(self, model: Any, jobs: Sequence[Job], **names: Any) -> None:
        model(pixel_values=self._pixels.expand(len(jobs), -1, -1, -1), **names).logits.sum().item()

    def _switched(self, model: Any, job: Job) -> None:
        model.set_adapter(f"a{job.adapter}")
        self._call(model, [job])

    def _named(self, model: Any, jobs: Sequence[Job]) -> None:
        self._call(model, jobs, adapter_names=[f"a{job.adapter}" for job in jobs])

    def _model_twin(self) -> Any:
        # These are small; and the engine's own has switches in front of its heads.
        twin = load_segmenter(self._base.path, dtype=self._pixels.dtype)
        return twin.to(self._pixels.device).eval()


def _twin_of(module: Any) -> Any:
    """Another diffusers model of the same kind around the same tensors, without the first one's hooks."""
    with torch.device("meta"):
        twin = type(module).from_config(module.config)
    twin.load_state_dict(module.state_dict(), assign=True)
    # Buffers that are not saved were made on the meta device.
    for name, buffer in module.named_buffers():
        owner, _, leaf = name.rpartition(".")
        setattr(twin.get_submodule(owner), leaf, buffer)
    return twin.eval().requires_grad_(False)


@contextmanager
def _adapter_names(module: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Give peft's layers the adapter of each row; diffusers, which injects them, has no way to."""

    def add(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, "adapter_names": names}

    layers = [layer for layer in module.modules() if isinstance(layer, LoraLayer)]
    hooks = [layer.register_forward_pre_hook(add, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
