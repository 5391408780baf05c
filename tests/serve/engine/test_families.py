"""Every family through the engine: what diffusers alone makes, in whatever company."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from hubctl.base_models import locate_base
from hubctl.errors import InputError
from hubctl.families import FAMILIES
from serve.engine.config import EngineConfig
from serve.engine.core import pick_device
from serve.engine.generate import ImageEngine
from serve.engine.requests import ImageRequest, LoraUse
from tests.serve import reference, tiny, tiny_pipelines
from tests.serve.tiny_parts import CLIP_TOKENS

TOLERANCE = reference.TOLERANCE
# Beside the attention: feed-forward layers, modulations, embedders and what else a trainer may name.
TARGETS = {
    "sdxl": "to_q to_out.0 ff.net.0.proj ff.net.2 conv1 time_emb_proj add_embedding.linear_1",
    "sd3": "to_q add_k_proj to_add_out ff.net.0.proj norm1.linear context_embedder proj_out",
    "flux": "to_v add_q_proj proj_mlp proj_out norm.linear x_embedder ff_context.net.2",
    "flux2-klein": "add_v_proj to_qkv_mlp_proj ff.linear_in double_stream_modulation_img.linear x_embedder",
    "qwen-image": "to_k add_q_proj img_mod.1 txt_mlp.net.2 img_in txt_in timestep_embedder.linear_1",
    "z-image": "to_k feed_forward.w2 layers.0.adaLN_modulation.0 cap_embedder.1 all_x_embedder.2-1",
    "sana": "attn2.to_k ff.conv_inverted ff.conv_point time_embed.linear caption_projection.linear_1",
}
# Longest prompt, and how many tokens surround it; CLIP's elsewhere.
LIMITS = {
    "sd3": (256, 2),
    "flux": (512, 2),
    "flux2-klein": (512, 19),
    "qwen-image": (512, 19),
    "z-image": (512, 19),
    "sana": (300, 2),
}
KINDS = {kind: kind for kind in TARGETS} | {"sd3-without-t5": "sd3"}


@dataclass(frozen=True)
class World:
    """A tiny base, its engine, and three adapters: attention, all kinds of layers, text encoders too."""

    kind: str
    engine: ImageEngine
    uses: tuple[LoraUse, ...]

    def truth(self, request: ImageRequest) -> np.ndarray:
        return reference.images(self.engine._core.base.path, request)


@pytest.fixture(scope="module", params=KINDS)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp(request.param)
    base = tiny_pipelines.write_pipeline(folder / "base", request.param)
    targets = TARGETS[KINDS[request.param]].split()
    adapters = [
        tiny.write_lora(folder / "attention", base, seed=1, rank=4, strength=1),
        tiny.write_lora(folder / "all", base, seed=2, rank=5, alpha=3, targets=targets, strength=1),
        tiny.write_lora(folder / "text", base, seed=4, rank=3, text_targets=tiny.TEXT, strength=1),
    ]
    engine = ImageEngine(locate_base(str(base)), tiny.engine_config(total_rows=64), tiny.fetch)
    yield World(request.param, engine, tuple(LoraUse(ref=tiny.pinned(path)) for path in adapters))
    engine.close()


def _requests(world: World) -> list[ImageRequest]:
    ask = ImageRequest(prompt="red apple", seed=1, num_inference_steps=4, width=32, height=32)
    attention, everywhere, text = world.uses
    return [
        ask,
        replace(ask, prompt="dog", seed=2, num_inference_steps=2, guidance_scale=1.0, loras=(attention,)),
        replace(
            ask,
            seed=3,
            num_inference_steps=3,
            negative_prompt=None if world.kind == "flux2-klein" else "moon",
            loras=(replace(everywhere, scale=0.7),),
        ),
        replace(ask, prompt="cat", seed=4, guidance_scale=2.5, num_images=2, loras=(text,)),
        replace(ask, seed=5, num_inference_steps=3, loras=(replace(text, scale=-0.5), everywhere)),
    ]


def test_each_request_alone_and_all_at_once(world: World) -> None:
    requests = _requests(world)
    reference.compare(world.engine, requests, [world.truth(request) for request in requests])
    owner = world.engine.owner
    denoiser = world.engine._core.base.family.denoiser
    assert owner.forwards[denoiser] < owner.calls[denoiser]


def test_a_prompt_is_as_long_as_the_longest_tokenizer(world: World) -> None:
    ask = replace(_requests(world)[0], num_inference_steps=1)
    limit, marks = LIMITS.get(world.kind, (CLIP_TOKENS, 2))
    letters = "a" * (limit - marks)
    world.engine.generate(replace(ask, prompt=letters))
    for long in (replace(ask, prompt=letters + "a"), replace(ask, negative_prompt=letters + "a")):
        with pytest.raises(InputError, match=f"has {limit + 1} tokens, this base reads {limit}") as caught:
            world.engine.generate(long)
        assert caught.value.param == ("negative_prompt" if long.negative_prompt else "prompt")


def test_a_scheduler_fits_or_is_refused(world: World) -> None:
    request = replace(_requests(world)[0], scheduler="euler")
    if world.engine._core.base.family.denoiser == "unet":
        assert np.abs(world.engine.generate_floats(request) - world.truth(request)).max() <= TOLERANCE
    else:
        with pytest.raises(InputError, match="the scheduler 'euler' does not fit"):
            world.engine.generate(request)


def test_a_side_is_as_long_as_the_denoiser_has_positions(world: World) -> None:
    """SD3 and Z-Image keep a table of them; the others compute them."""
    ask = replace(_requests(world)[0], num_inference_steps=1, height=32)
    tables = KINDS[world.kind] in ("sd3", "z-image")
    world.engine.generate(replace(ask, width=128))
    if tables:
        with pytest.raises(InputError, match="width 136 is out of range") as caught:
            world.engine.generate(replace(ask, width=136))
        assert (caught.value.param, caught.value.hint) == ("width", "give 8 to 128")
    else:
        world.engine.generate(replace(ask, width=160))


def test_adapters_show(world: World) -> None:
    request = _requests(world)[0]
    plain = world.engine.generate_floats(request)
    for use in world.uses:
        changed = world.engine.generate_floats(replace(request, loras=(use,)))
        assert np.abs(changed - plain).max() > 20 * TOLERANCE


def test_half_precision_is_the_family_s_own() -> None:
    families = {family.name: family for family in FAMILIES}
    gpu = EngineConfig(device="cuda:0")
    assert pick_device(gpu, families["sdxl"])[1] == torch.float16
    assert pick_device(gpu, families["flux"])[1] == torch.bfloat16
    assert pick_device(replace(gpu, dtype="float32"), families["flux"])[1] == torch.float32
    assert pick_device(replace(gpu, device="cpu"), families["flux"])[1] == torch.float32
