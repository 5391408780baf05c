"""Against the real libraries: what save_pretrained writes, and what the modules are called in memory."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors import safe_open

from hubctl.adapter.names import current_name
from tests.train.tiny import segmentation_base


def on_disk(path: Path) -> set[str]:
    with safe_open(path, "pt") as file:
        return set(file.keys())


def test_segformer_names_on_disk_become_those_in_memory(tmp_path: Path) -> None:
    from transformers import SegformerForSemanticSegmentation

    segmentation_base(tmp_path)
    model = SegformerForSemanticSegmentation.from_pretrained(tmp_path)
    disk, memory = on_disk(tmp_path / "model.safetensors"), set(model.state_dict())
    assert disk != memory  # the reason for names.py
    assert {current_name("model", name) for name in disk} == memory
    assert {current_name("model", name) for name in memory} == memory


def test_module_paths_become_current_like_tensor_names(tmp_path: Path) -> None:
    segmentation_base(tmp_path)
    for name in on_disk(tmp_path / "model.safetensors"):
        module, _, leaf = name.rpartition(".")
        assert f"{current_name('model', module)}.{leaf}" == current_name("model", name)


@pytest.mark.parametrize("component", ["text_encoder", "text_encoder_2"])
def test_clip_names_on_disk_become_those_in_memory(tmp_path: Path, component: str) -> None:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                            num_attention_heads=1, max_position_embeddings=4, projection_dim=8)  # fmt: skip
    model = (CLIPTextModel if component == "text_encoder" else CLIPTextModelWithProjection)(config)
    model.save_pretrained(tmp_path)
    memory = {current_name(component, name) for name in model.state_dict()}
    assert {current_name(component, name) for name in on_disk(tmp_path / "model.safetensors")} == memory
    assert "encoder.layers.0.self_attn.q_proj.weight" in memory


@pytest.mark.parametrize(
    "name",
    ["down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", "encoder.block.0.0.x", "text_model.y"],
)
def test_other_components_keep_their_names(name: str) -> None:
    assert current_name("unet", name) == current_name("transformer", name) == name
