from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hubctl.errors import InputError
from hubctl.families import detect_family
from hubctl.modeling.loading import load_segmenter
from tests.serve.segmenters import SEGMENTERS, write_segmenter
from train.adapt import head_name, require_useful_rank, resolve_targets


@pytest.fixture(scope="module")
def segformer(segmentation_base: Path) -> Any:
    from transformers import AutoModelForSemanticSegmentation

    return AutoModelForSemanticSegmentation.from_pretrained(segmentation_base)


def test_attention_is_the_familys_own_choice(segformer: Any) -> None:
    assert resolve_targets(segformer, ("attention",), default_targets=("q_proj", "v_proj")) == [
        "q_proj",
        "v_proj",
    ]


def test_all_linear_leaves_convolutions_and_the_head_alone(segformer: Any) -> None:
    names = resolve_targets(segformer, ("all-linear",), default_targets=(), heads=("decode_head",))
    assert "segformer.stages.0.blocks.0.mlp.fc1" in names
    assert not [name for name in names if "decode_head" in name or "patch_embeddings" in name]


def test_attention_conv_adds_the_convolutions_that_are_one_group(segformer: Any) -> None:
    names = resolve_targets(
        segformer, ("attention-conv",), default_targets=("q_proj", "v_proj"), heads=("decode_head",)
    )
    endings = {name.rpartition(".")[2] for name in names}
    assert endings == {"q_proj", "v_proj", "proj", "sequence_reduction"}
    assert not [name for name in names if "decode_head" in name or "dwconv" in name]


def test_an_ending_that_also_names_a_part_of_the_head_becomes_whole_names(segformer: Any) -> None:
    names = resolve_targets(segformer, ("proj",), default_targets=(), heads=("decode_head",))
    assert names == ["segformer.stages.0.patch_embeddings.proj", "segformer.stages.1.patch_embeddings.proj"]


def test_unknown_names_are_refused_with_near_ones(segformer: Any) -> None:
    with pytest.raises(InputError, match="no layer of the base is called 'q_prj'") as caught:
        resolve_targets(segformer, ("q_prj",), default_targets=())
    assert "q_proj" in (caught.value.hint or "")


def test_the_head_is_found(segformer: Any) -> None:
    assert head_name(segformer) == "decode_head"
    with pytest.raises(InputError, match="has no head to train"):
        head_name(segformer.segformer)


@pytest.mark.parametrize("name", SEGMENTERS)
def test_every_kind_of_base_has_a_head_and_layers_for_lora(name: str, tmp_path: Path) -> None:
    base = write_segmenter(tmp_path, name)
    model, kind = load_segmenter(base), SEGMENTERS[name]
    heads = [head_name(model)]
    assert heads == [kind.head]
    default = detect_family(base).default_targets
    targets = resolve_targets(model, ("attention",), default_targets=default, heads=heads)
    assert set(targets) <= set(default) & set(kind.targets)
    assert targets


def test_a_rank_above_every_layer_is_refused_with_the_highest_that_serves(segformer: Any) -> None:
    require_useful_rank(segformer, ["q_proj"], 16)
    with pytest.raises(InputError, match=r"rank 17 .* the largest, segformer\.stages\.1.*q_proj, has 16"):
        require_useful_rank(segformer, ["q_proj"], 17)


def test_a_base_without_any_of_the_familys_choices_is_refused(segformer: Any) -> None:
    with pytest.raises(InputError, match="no layer of the base is called 'pwconv1'"):
        resolve_targets(segformer, ("attention",), default_targets=("pwconv1", "pwconv2"))
