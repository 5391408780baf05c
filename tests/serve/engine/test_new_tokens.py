"""Adapters with words of their own (pivotal tuning), side by side, against diffusers alone."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hubctl.adapter.gate import gate
from hubctl.base_models import locate_base
from hubctl.errors import AdapterError, AdapterMismatchError, InputError
from hubctl.families import detect_family
from serve.engine.generate import ImageEngine
from serve.engine.requests import ImageRequest, LoraUse
from tests.serve import reference, tiny, tiny_pipelines
from tests.serve.tiny_parts import CLIP_TOKENS

KEYS = ("clip_l", "clip_g")


def write_tokens(path: Path, base: Path, *, count: int, seed: int, names: list[str] | None = None) -> None:
    """Random vectors, as large as the base's own, in the form of diffusers' advanced scripts."""
    pipeline = tiny.load_pipeline(base)
    generator = torch.Generator().manual_seed(seed)
    vectors = {}
    for key, component in zip(KEYS, detect_family(base).text_encoders, strict=False):
        table = getattr(pipeline, component).get_input_embeddings().weight
        noise = torch.randn(count, table.shape[1], generator=generator)
        vectors[key] = noise * float(table.detach().std()) * 3
    save_file(vectors, path, metadata={"tokens": json.dumps(names)} if names else None)


@dataclass(frozen=True)
class World:
    base: Path
    engine: ImageEngine
    first: LoraUse
    second: LoraUse
    plain: LoraUse

    def truth(self, request: ImageRequest) -> np.ndarray:
        """Made by a fresh pipeline of diffusers that loads weights and vectors by its own loaders."""
        pipeline: Any = tiny.load_pipeline(self.base)
        names = [f"adapter_{i}" for i in range(len(request.loras))]
        for name, use in zip(names, request.loras, strict=True):
            folder = tiny.fetch(use.ref)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Already found a `peft_config`")
                pipeline.load_lora_weights(
                    folder, weight_name="pytorch_lora_weights.safetensors", adapter_name=name
                )
            for path in folder.glob("*emb*.safetensors"):
                vectors = load_file(path)
                # In the file of `second` the names are stated.
                tokens = ["<s0>", "<s1>"] if path.name.endswith("_emb.safetensors") else ["<hat>"]
                for key, which in zip(KEYS, ("", "_2"), strict=True):
                    if key in vectors:
                        pipeline.load_textual_inversion(
                            vectors[key],
                            token=tokens,
                            text_encoder=getattr(pipeline, f"text_encoder{which}"),
                            tokenizer=getattr(pipeline, f"tokenizer{which}"),
                        )
        if names:
            pipeline.set_adapters(names, [use.scale for use in request.loras])
        made: np.ndarray = pipeline(
            request.prompt,
            negative_prompt=request.negative_prompt,
            width=32,
            height=32,
            num_inference_steps=request.num_inference_steps,
            guidance_scale=request.guidance_scale,
            generator=torch.Generator().manual_seed(request.seed),
            output_type="np",
        ).images
        return made


@pytest.fixture(scope="module", params=["sd1", "sdxl", "flux"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp(request.param)
    base = tiny_pipelines.write_pipeline(folder / "base", request.param)
    one = tiny.write_lora(folder / "one", base, seed=1, rank=4, strength=1)
    write_tokens(one / "one_emb.safetensors", base, count=2, seed=1)
    two = tiny.write_lora(folder / "two", base, seed=2, rank=3, text_targets=tiny.TEXT, strength=1)
    write_tokens(two / "embeddings.safetensors", base, count=1, seed=2, names=["<hat>"])
    plain = tiny.write_lora(folder / "plain", base, seed=3, rank=5, use_dora=True, strength=1)
    engine = ImageEngine(locate_base(str(base)), tiny.engine_config(total_rows=40), tiny.fetch)
    yield World(base, engine, *(LoraUse(ref=tiny.pinned(path)) for path in (one, two, plain)))
    engine.close()


def test_each_reads_its_own_words_in_one_forward(world: World) -> None:
    ask = ImageRequest(
        prompt="a <s0> dog", seed=1, num_inference_steps=3, guidance_scale=3.0, width=32, height=32
    )
    requests = [
        replace(ask, loras=(world.first,)),
        replace(ask, prompt="<s1><s0> house", seed=2, loras=(world.first, replace(world.plain, scale=0.5))),
        replace(ask, prompt="a red <hat>", seed=3, loras=(world.second,), num_inference_steps=2),
        # Two vocabularies in one request, in either order.
        replace(ask, prompt="<hat> on <s1>", seed=4, loras=(world.second, world.first)),
        replace(ask, prompt="<hat> on <s1>", seed=4, loras=(world.first, world.second)),
        # Without the adapter these are letters.
        replace(ask, seed=5),
    ]
    if "Flux" not in type(world.engine._template).__name__:
        requests.append(replace(ask, prompt="dog", negative_prompt="a <s0>", seed=6, loras=(world.first,)))
    truths = [world.truth(request) for request in requests]
    without = world.truth(replace(requests[0], prompt="a dog"))
    assert np.abs(truths[0] - without).max() > 0.01  # the words matter, or nothing here would be tested
    reference.compare(world.engine, requests, truths)
    owner = world.engine.owner
    assert owner.forwards["text_encoder"] < owner.calls["text_encoder"]


def test_a_word_counts_as_one_token(world: World) -> None:
    """More than the longest prompt in letters, and far less in words."""
    if "Flux" in type(world.engine._template).__name__:
        pytest.skip("its T5, which takes the longest prompts, reads them as letters")
    prompt = " ".join(["<s0>"] * (CLIP_TOKENS - 2))
    ask = ImageRequest(prompt=prompt, seed=1, num_inference_steps=2, width=32, height=32)
    world.engine.generate(replace(ask, loras=(world.first,)))
    with pytest.raises(InputError, match="the prompt has"):
        world.engine.generate(ask)
    with pytest.raises(InputError, match=f"the prompt has {2 * CLIP_TOKENS - 2} tokens"):
        world.engine.generate(replace(ask, prompt=prompt * 2, loras=(world.first,)))


def test_two_adapters_with_one_word_are_refused(world: World, tmp_path: Path) -> None:
    other = tiny.write_lora(tmp_path / "other", world.base, seed=5)
    write_tokens(other / "embeddings.safetensors", world.base, count=1, seed=5, names=["<s1>"])
    ask = ImageRequest(prompt="<s1>", seed=1, width=32, height=32, num_inference_steps=2)
    with pytest.raises(InputError, match="two of the adapters bring a word <s1>"):
        world.engine.generate(replace(ask, loras=(world.first, LoraUse(ref=tiny.pinned(other)))))


def test_rows_hold_the_words_too_and_are_let_go(world: World) -> None:
    ask = ImageRequest(prompt="<s1>", seed=1, width=32, height=32, num_inference_steps=2)
    world.engine.generate(replace(ask, loras=(world.first,)))
    residency = world.engine._core.residency
    assert len(residency._ledger._entries[world.first.ref].rows) == 4 + 2
    assert residency.leases(world.first.ref) == 0


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda v: v | {"clip_l": v["clip_l"] * float("nan")}, "NaN or infinity"),
        (lambda v: {key: value[:, :-1].contiguous() for key, value in v.items()}, "numbers for"),
        (lambda v: {"clip_g": v["clip_l"]}, "no vectors for 'text_encoder'|could learn"),
        (lambda v: v | {"t5": v["clip_l"].clone()}, "has tokens for 't5'"),
        (lambda v: v | {"clip_l": v["clip_l"][0].clone()}, "has no vectors for 1 to 64 tokens"),
        (lambda v: {key: value.repeat(40, 1) for key, value in v.items()}, "has no vectors for 1 to 64"),
    ],
)
def test_unsound_vectors_are_refused_by_gate_and_server(
    world: World, tmp_path: Path, spoil: Any, said: str
) -> None:
    folder = tiny.write_lora(tmp_path / "spoilt", world.base, seed=6)
    path = folder / "embeddings.safetensors"
    write_tokens(path, world.base, count=2, seed=6)
    save_file(spoil(load_file(path)), path)
    with pytest.raises(AdapterError, match=said):
        gate(folder, locate_base(str(world.base)))
    ask = ImageRequest(prompt="<s1>", seed=1, width=32, height=32, num_inference_steps=2)
    with pytest.raises(AdapterError):
        world.engine.generate(replace(ask, loras=(LoraUse(ref=tiny.pinned(folder)),)))


@pytest.mark.parametrize("names", [["tok"], ["<a b>"], ["<|endoftext|>"], ["<s0>", "<s0>"], [], "<s0>", [1]])
def test_unsound_names_are_refused(world: World, tmp_path: Path, names: Any) -> None:
    folder = tiny.write_lora(tmp_path / "named", world.base, seed=7)
    write_tokens(folder / "embeddings.safetensors", world.base, count=1, seed=7)
    vectors = load_file(folder / "embeddings.safetensors")
    save_file(vectors, folder / "embeddings.safetensors", metadata={"tokens": json.dumps(names)})
    with pytest.raises(AdapterError, match="does not name its 1 tokens soundly"):
        gate(folder, None)


def test_files_of_another_kind_are_left_alone(world: World, tmp_path: Path) -> None:
    folder = tiny.write_lora(tmp_path / "other", world.base, seed=8)
    save_file({"anything": torch.zeros(3)}, folder / "embeddings.safetensors")
    assert gate(folder, locate_base(str(world.base))).tokens is None


def test_several_files_of_tokens_are_refused(world: World, tmp_path: Path) -> None:
    folder = tiny.write_lora(tmp_path / "several", world.base, seed=9)
    for name in ("a_emb.safetensors", "b_emb.safetensors"):
        write_tokens(folder / name, world.base, count=1, seed=9)
    with pytest.raises(AdapterError, match="new tokens in several files"):
        gate(folder, None)


def test_a_base_without_a_clip_takes_none(tmp_path: Path, world: World) -> None:
    base = tiny_pipelines.write_pipeline(tmp_path / "base", "sana")
    folder = tiny.write_lora(tmp_path / "lora", base, seed=10)
    write_tokens(folder / "embeddings.safetensors", world.base, count=1, seed=10)
    with pytest.raises(AdapterMismatchError, match="the base has no 'text_encoder'"):
        gate(folder, locate_base(str(base)))
