from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hubctl.errors import InputError
from hubctl.families import detect_family
from hubctl.modeling.loading import load_segmenter
from tests.serve.segmenters import SEGMENTERS, write_segmenter
from train.adapt import find_head, require_useful_rank, resolve_targets


@pytest.fixture(scope="module")
def segformer(segmentation_base: Path) -> Any:
    from transformers import AutoModelForSemanticSegmentation

    return AutoModelForSemanticSegmentation.from_pretrained(segmentation_base)


def test_attention_is_the_familys_own_choice(segformer: Any) -> None:
    assert resolve_targets(segformer, ("attention",), default_targets=("q_proj", "v_proj")) == [
        "q_proj",
        "v_proj",
    ]


def test_all_linear_leaves_convolutions_and_what_is_trained_whole_alone(segformer: Any) -> None:
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


def test_an_ending_that_also_names_a_block_becomes_whole_names(segformer: Any) -> None:
    names = resolve_targets(segformer, ("dwconv",), default_targets=())
    assert names == [f"segformer.stages.{stage}.blocks.0.mlp.dwconv.dwconv" for stage in (0, 1)]


@pytest.mark.parametrize("rank", [4, 64])
def test_layers_in_which_no_lora_could_be_served_are_refused(segformer: Any, rank: int) -> None:
    with pytest.raises(InputError, match=r"dwconv\.dwconv is a convolution in \d+ groups"):
        require_useful_rank(segformer, ["dwconv.dwconv"], rank)


def test_unknown_names_are_refused_with_near_ones(segformer: Any) -> None:
    with pytest.raises(InputError, match="no layer of the base is called 'q_prj'") as caught:
        resolve_targets(segformer, ("q_prj",), default_targets=())
    assert "q_proj" in (caught.value.hint or "")


def test_of_a_head_the_last_layer_is_trained_whole_and_the_others_take_lora(segformer: Any) -> None:
    head = find_head(segformer)
    assert head.classifier == "decode_head.classifier"
    assert head.before == [
        "decode_head.linear_projections.0.proj",
        "decode_head.linear_projections.1.proj",
        "decode_head.linear_fuse",
    ]
    with pytest.raises(InputError, match="has no head to train"):
        find_head(segformer.segformer)


def test_dilated_convolutions_take_no_lora_since_peft_would_not_dilate_them() -> None:
    model = SEGMENTERS["mobilevit"].model()
    convolutions = [f"segmentation_head.aspp.convs.{number}.convolution" for number in range(4)]
    assert [model.get_submodule(name).dilation[0] for name in convolutions] == [1, 6, 12, 18]
    chosen = resolve_targets(model, ("attention-conv",), default_targets=())
    for names in (find_head(model).before, chosen):
        assert [name in names for name in convolutions] == [True, False, False, False]


@pytest.mark.parametrize("name", SEGMENTERS)
def test_every_kind_of_base_has_a_head_and_layers_for_lora(name: str, tmp_path: Path) -> None:
    base = write_segmenter(tmp_path, name)
    model, kind = load_segmenter(base), SEGMENTERS[name]
    head = find_head(model)
    changed = load_segmenter(base, {0: "a", 1: "b", 2: "c"}).state_dict()
    of_classes = {n for n, old in model.state_dict().items() if changed[n].shape != old.shape}
    # Some have a second head, which only helps training.
    assert {n for n in of_classes if not n.startswith("auxiliary_head.")} == {
        n for n in changed if n.startswith(f"{head.classifier}.")
    }
    default = detect_family(base).default_targets
    targets = resolve_targets(model, ("attention",), default_targets=default, heads=[head.classifier])
    assert set(targets) <= set(default) & set(kind.targets)
    assert targets


def test_a_rank_above_every_layer_is_refused_with_the_highest_that_serves(segformer: Any) -> None:
    require_useful_rank(segformer, ["q_proj"], 16)
    with pytest.raises(InputError, match=r"rank 17 .* the largest, segformer\.stages\.1.*q_proj, has 16"):
        require_useful_rank(segformer, ["q_proj"], 17)


def test_a_base_without_any_of_the_familys_choices_is_refused(segformer: Any) -> None:
    with pytest.raises(InputError, match="no layer of the base is called 'pwconv1'"):
        resolve_targets(segformer, ("attention",), default_targets=("pwconv1", "pwconv2"))
