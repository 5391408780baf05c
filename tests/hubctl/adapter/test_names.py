"""Against the real libraries: what save_pretrained writes, and what the modules are called in memory."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from hubctl.adapter.names import current_name, renames
from tests.serve.segmenters import SEGMENTERS, names_on_disk

OLD_NAMES_STAY = {"upernet-beit", "linear-vit"}
"""What their backbones' old names became depends on the backbone, which an adapter does not say."""
RENAMED = {
    "segformer",
    "beit",
    "upernet-swin",
    "upernet-dinov2",
    "linear-dinov2",
    "linear-dinov2-registers",
    "linear-dinov3",
    *OLD_NAMES_STAY,
}


def current(component: str, names: Iterable[str]) -> set[str]:
    rules = renames(component, names := set(names))
    return {current_name(name, rules) for name in names}


@pytest.mark.parametrize("family", SEGMENTERS)
def test_names_on_disk_become_those_in_memory(tmp_path: Path, family: str) -> None:
    on_disk = names_on_disk(tmp_path, family)  # by name in memory
    rules = renames("model", on_disk.values())
    assert any(old != name for name, old in on_disk.items()) == (family in RENAMED)
    in_memory = renames("model", on_disk)
    assert {name: current_name(old, rules) for name, old in on_disk.items()} == {
        name: current_name(name, in_memory) for name in on_disk
    }
    kept = current("model", on_disk)
    assert len(kept) == len(on_disk)
    assert (kept == set(on_disk)) == (family not in OLD_NAMES_STAY)


@pytest.mark.parametrize("family", SEGMENTERS)
def test_layers_become_current_like_their_weights(tmp_path: Path, family: str) -> None:
    on_disk = names_on_disk(tmp_path, family)
    rules = renames("model", on_disk.values())
    for old in on_disk.values():
        if old.endswith(".weight"):
            layer = current_name(old, rules).removesuffix(".weight")
            assert current_name(old.removesuffix(".weight"), rules) == layer


def test_heads_of_data2vec_that_transformers_no_longer_reads() -> None:
    old = {"decode_head.bottleneck.bn.weight", "decode_head.psp_modules.1.1.conv.weight", "fpn1.0.weight"}
    assert current("model", old | {"data2vec_vision.encoder.layer.0.output.dense.weight"}) == {
        "decode_head.psp_bottleneck.normalization.weight",
        "decode_head.psp_modules.blocks.1.conv.convolution.weight",
        "fpn1.0.weight",
        "data2vec_vision.encoder.layer.0.output.dense.weight",
    }


@pytest.mark.parametrize("component", ["text_encoder", "text_encoder_2"])
def test_clip_names_on_disk_become_those_in_memory(tmp_path: Path, component: str) -> None:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                            num_attention_heads=1, max_position_embeddings=4, projection_dim=8)  # fmt: skip
    model = (CLIPTextModel if component == "text_encoder" else CLIPTextModelWithProjection)(config)
    model.save_pretrained(tmp_path)
    memory = current(component, model.state_dict())
    assert current(component, load_file(tmp_path / "model.safetensors")) == memory
    assert "encoder.layers.0.self_attn.q_proj.weight" in memory


@pytest.mark.parametrize(
    "name",
    ["down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", "encoder.block.0.0.x", "text_model.y"],
)
def test_other_components_keep_their_names(name: str) -> None:
    for component in ("unet", "transformer"):
        assert current(component, {name}) == {name}
