from __future__ import annotations

import contextlib
import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubctl.adapter.layout import AdapterLayout, read_layout
from hubctl.errors import AdapterError
from tests.hubctl.adapter.raw import diffusers_folder, pair, peft_folder, weights
from tests.train.tiny import diffusion_base, segmentation_base

SETTINGS: list[dict[str, Any]] = [
    {"r": 4, "lora_alpha": 4},
    {"r": 4, "lora_alpha": 1},
    {"r": 4, "lora_alpha": 8, "use_rslora": True},
    {"r": 4, "lora_alpha": 8, "rank_pattern": {"attn1.to_q": 2}},
    {"r": 4, "lora_alpha": 8, "alpha_pattern": {"attn2.to_v": 3}, "use_rslora": True},
    {"r": 2, "lora_alpha": 2, "rank_pattern": {"to_q": 6}, "alpha_pattern": {"to_q": 5, "to_k": 7}},
]
# Two patterns match one layer and diffusers sorts them as it saves: the file decides, not the training.
AMBIGUOUS = {"r": 2, "lora_alpha": 2, "alpha_pattern": {"to_q": 5, "attn2.to_q": 7}}


def real_scales(model: Any, adapter: str = "default") -> dict[str, float]:
    """What peft will multiply by, per layer, from the model that it built."""
    return {
        name: float(module.scaling[adapter])
        for name, module in model.named_modules()
        if isinstance(getattr(module, "scaling", None), dict) and adapter in module.scaling
    }


@pytest.fixture(scope="module")
def unet(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from diffusers import UNet2DConditionModel

    folder = diffusion_base(tmp_path_factory.mktemp("base") / "sd")
    return UNet2DConditionModel.from_pretrained(folder, subfolder="unet")


@pytest.fixture(scope="module")
def segformer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import SegformerForSemanticSegmentation

    return SegformerForSemanticSegmentation.from_pretrained(
        segmentation_base(tmp_path_factory.mktemp("base"))
    )


def save_with_diffusers(unet: Any, folder: Path, *, metadata: bool = True, **settings: Any) -> Any:
    from diffusers import StableDiffusionPipeline
    from peft import LoraConfig, get_peft_model_state_dict

    model = copy.deepcopy(unet)
    model.add_adapter(LoraConfig(target_modules=["to_q", "to_k", "to_v", "to_out.0", "conv_in"], **settings))
    StableDiffusionPipeline.save_lora_weights(
        folder,
        unet_lora_layers=get_peft_model_state_dict(model),
        unet_lora_adapter_metadata=model.peft_config["default"].to_dict() if metadata else None,
    )
    return model


def check_against(layout: AdapterLayout, scales: dict[str, float], component: str) -> None:
    assert scales
    assert {m.module: m.scale for m in layout.modules} == pytest.approx(scales)
    assert {m.component for m in layout.modules} == {component}


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_scales_are_those_of_the_layers_that_diffusers_saved(
    tmp_path: Path, unet: Any, settings: dict[str, Any]
) -> None:
    model = save_with_diffusers(unet, tmp_path, **settings)
    layout = read_layout(tmp_path)
    assert layout.dialect == "diffusers"
    check_against(layout, real_scales(model), "unet")
    for m in layout.modules:
        layer = model.get_submodule(m.module)
        assert m.a_shape == tuple(layer.lora_A["default"].weight.shape)
        assert m.b_shape == tuple(layer.lora_B["default"].weight.shape)
        assert m.rank == layer.r["default"]
        assert m.alpha == layer.lora_alpha["default"]


@pytest.mark.parametrize(
    ("settings", "metadata"), [(SETTINGS[0], False), (SETTINGS[3], False), (AMBIGUOUS, True)], ids=str
)
def test_scales_are_those_of_the_layers_that_diffusers_loads(
    tmp_path: Path, unet: Any, settings: dict[str, Any], metadata: bool
) -> None:
    save_with_diffusers(unet, tmp_path, metadata=metadata, **settings)
    loaded = copy.deepcopy(unet)
    loaded.load_lora_adapter(
        tmp_path, prefix="unet", adapter_name="default", weight_name="pytorch_lora_weights.safetensors"
    )
    check_against(read_layout(tmp_path), real_scales(loaded), "unet")


@pytest.mark.parametrize("old_keys", [True, False])
def test_text_encoder_layers_are_named_as_in_memory(tmp_path: Path, old_keys: bool) -> None:
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig, get_peft_model_state_dict
    from transformers import CLIPTextModel

    base = diffusion_base(tmp_path / "base")
    encoder = CLIPTextModel.from_pretrained(base / "text_encoder")
    encoder.add_adapter(LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj", "out_proj", "fc1"]))
    layers = get_peft_model_state_dict(encoder)
    StableDiffusionPipeline.save_lora_weights(
        tmp_path / "lora",
        # What diffusers' own training scripts do, and without it.
        text_encoder_lora_layers=convert_state_dict_to_diffusers(layers) if old_keys else layers,
        text_encoder_lora_adapter_metadata=encoder.peft_config["default"].to_dict(),
    )
    layout = read_layout(tmp_path / "lora")
    scales = {name.removeprefix("text_model."): scale for name, scale in real_scales(encoder).items()}
    check_against(layout, scales, "text_encoder")


@pytest.mark.parametrize(
    "settings",
    [
        {"r": 4, "lora_alpha": 4},
        {"r": 4, "lora_alpha": 6, "use_rslora": True},
        {
            "r": 2,
            "lora_alpha": 6,
            "rank_pattern": {"q_proj": 3},
            "alpha_pattern": {r"0\.attention\.v_proj": 5},
        },
        {"r": 2, "lora_alpha": 2, "rank_pattern": {"^segformer.stages.1.blocks.0.attention.q_proj": 4}},
    ],
    ids=str,
)
def test_scales_and_heads_are_those_that_peft_saved(
    tmp_path: Path, segformer: Any, settings: dict[str, Any]
) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(target_modules=["q_proj", "v_proj"], modules_to_save=["decode_head"], **settings)
    model = get_peft_model(copy.deepcopy(segformer), config)
    model.save_pretrained(tmp_path)
    layout = read_layout(tmp_path)
    assert layout.dialect == "peft"
    assert layout.peft_config is not None
    assert layout.peft_config["r"] == settings["r"]
    scales = {name.removeprefix("base_model.model."): s for name, s in real_scales(model).items()}
    check_against(layout, scales, "model")
    own = segformer.state_dict()
    heads = {name: tuple(t.shape) for name, t in own.items() if name.startswith("decode_head.")}
    assert {h.name: h.shape for h in layout.heads} == heads
    assert {h.module for h in layout.heads} == {"decode_head"}


def test_old_segformer_names_become_the_current_ones(tmp_path: Path) -> None:
    shapes = pair("segformer.encoder.block.0.0.attention.self.query") | {
        "decode_head.linear_c.0.proj.weight": (8, 8)
    }
    config = {"r": 8, "lora_alpha": 8, "rank_pattern": {"query": 2}, "alpha_pattern": {"query": 3},
              "modules_to_save": ["decode_head"]}  # fmt: skip
    layout = read_layout(peft_folder(tmp_path, shapes, config))
    (module,), (head,) = layout.modules, layout.heads
    assert module.module == "segformer.stages.0.blocks.0.attention.q_proj"
    assert module.a_key == "base_model.model.segformer.encoder.block.0.0.attention.self.query.lora_A.weight"
    assert module.scale == 1.5
    assert head.name == "decode_head.linear_projections.0.proj.weight"
    assert head.key == "base_model.model.decode_head.linear_c.0.proj.weight"


@pytest.mark.parametrize(
    ("saved", "module"),
    [
        (["head"], "auxiliary_head"),
        (["auxiliary_head.head"], "auxiliary_head.head"),
        (["0", "head.head"], "auxiliary_head.head"),
        (["head.0"], "auxiliary_head.head.0"),
    ],
)
def test_saved_modules_are_found_by_their_endings_as_in_peft(
    tmp_path: Path, saved: list[str], module: str
) -> None:
    shapes = pair("dpt.query") | {"auxiliary_head.head.0.weight": (8, 8)}
    (head,) = read_layout(
        peft_folder(tmp_path, shapes, {"r": 2, "lora_alpha": 2, "modules_to_save": saved})
    ).heads
    assert (head.module, head.name) == (module, "auxiliary_head.head.0.weight")


def test_a_setting_that_is_not_said_is_peft_s_own(tmp_path: Path) -> None:
    from peft import LoraConfig

    (module,) = read_layout(peft_folder(tmp_path, pair("a.to_q"), {"r": 2})).modules
    assert module.alpha == LoraConfig(r=2).lora_alpha


@pytest.mark.parametrize(
    "pattern", ["all_x_embedder.2-1", r"all_x_embedder\.2\-1", "^layers.all_x_embedder.2-1"]
)
def test_patterns_name_layers_with_a_dash(tmp_path: Path, pattern: str) -> None:
    settings = {"r": 4, "lora_alpha": 4, "rank_pattern": {pattern: 2}, "alpha_pattern": {pattern: 3}}
    (module,) = read_layout(peft_folder(tmp_path, pair("layers.all_x_embedder.2-1"), settings)).modules
    assert (module.rank, module.alpha) == (2, 3)


@pytest.mark.parametrize(
    ("model", "component"),
    [
        ("UNet2DConditionModel", "unet"),
        ("FluxTransformer2DModel", "transformer"),
        ("SD3Transformer2DModel", "transformer"),
        ("ZImageTransformer2DModel", "transformer"),
        ("CLIPTextModel", "text_encoder"),
        ("SegformerForSemanticSegmentation", "model"),
    ],
)
def test_peft_says_what_part_of_a_pipeline_its_folder_is_for(
    tmp_path: Path, model: str, component: str
) -> None:
    settings = {"r": 2, "lora_alpha": 2, "auto_mapping": {"base_model_class": model}}
    (module,) = read_layout(peft_folder(tmp_path, pair("blocks.0.to_q"), settings)).modules
    assert module.component == component


def test_keys_under_peft_s_usual_name_of_an_adapter_are_read_as_diffusers_reads_them(
    tmp_path: Path, unet: Any
) -> None:
    from safetensors.torch import load_file, save_file

    save_with_diffusers(unet, tmp_path / "plain", metadata=False, r=4, lora_alpha=4)
    file = "pytorch_lora_weights.safetensors"
    plain = load_file(tmp_path / "plain" / file)
    (tmp_path / "named").mkdir()
    named = {key.replace(".weight", ".default.weight"): value for key, value in plain.items()}
    save_file(named, tmp_path / "named" / file)
    loaded = copy.deepcopy(unet)
    loaded.load_lora_adapter(tmp_path / "named", prefix="unet", adapter_name="default", weight_name=file)
    check_against(read_layout(tmp_path / "named"), real_scales(loaded), "unet")


@pytest.mark.parametrize(
    ("key", "whose"),
    [
        ("double_blocks.0.processor.proj_lora1.down.weight", "XLabs"),
        ("double_blocks.0.img_attn.qkv.lora_A.weight", "Black Forest Labs"),
        ("model.diffusion_model.layers.0.attention.to_q.lora_A.weight", "ComfyUI"),
    ],
)
def test_other_tools_are_named(tmp_path: Path, key: str, whose: str) -> None:
    with pytest.raises(AdapterError, match=f"in the form of {whose}") as caught:
        read_layout(diffusers_folder(tmp_path, {key: (2, 2)}))
    assert caught.value.hint is not None


def test_one_safetensors_file_under_another_name_is_found(tmp_path: Path) -> None:
    (tmp_path / "my_style.safetensors").write_bytes(weights(pair("unet.a.to_q")))
    for path in (tmp_path, tmp_path / "my_style.safetensors"):
        assert read_layout(path).weights_file.name == "my_style.safetensors"


def test_no_weights_or_several_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="holds no safetensors weights"):
        read_layout(tmp_path)
    for name in ("a", "b"):
        (tmp_path / f"{name}.safetensors").write_bytes(weights(pair("unet.a.to_q")))
    with pytest.raises(AdapterError, match="holds several safetensors weights"):
        read_layout(tmp_path)


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight", "kohya"),
        ("lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight", "kohya"),
        ("lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha", "kohya"),
        ("lora_unet_mid_block.hada_w1_a", "kohya"),
        ("unet.mid_block.hada_w1_a", "LoHa"),
        ("diffusion_model.layers.0.attention.to_q.hada_w1_a", "ComfyUI"),
        ("unet.mid_block.lokr_w1", "LoKr"),
        ("unet.mid_block.oft_blocks", "OFT"),
        ("unet.a.to_q.dora_scale", "kohya"),
        ("unet.a.attn1.processor.to_q_lora.down.weight", "diffusers' attention-processor"),
        ("unet.a.to_q.lora.down.weight", "diffusers' older"),
    ],
)
def test_other_formats_are_refused_by_name(tmp_path: Path, key: str, kind: str) -> None:
    with pytest.raises(AdapterError, match=f"in {kind} form"):
        read_layout(diffusers_folder(tmp_path, {key: (2, 2)}))


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"unet.a.weight": (2, 2)}, "a key that no LoRA has: 'unet.a.weight'"),
        ({"vae.a.lora_A.weight": (2, 2)}, "a key that no LoRA has"),
        ({"unet.a.lora_A.bias": (2,)}, "a key that no LoRA has"),
        ({"unet.a.alpha": ()}, "'unet.a' lacks one of its halves"),
        ({}, "holds no LoRA weights"),
        ({"unet.a.lora_A.weight": (2, 4)}, "'unet.a' has its lora_A but not its pair"),
        ({"unet.a.lora_B.weight": (4, 2)}, "'unet.a' has its lora_B but not its pair"),
        ({"unet.a.lora_A.weight": (2, 4), "unet.a.lora_B.weight": (6, 3)}, "are no LoRA pair"),
        ({"unet.a.lora_A.weight": (0, 4), "unet.a.lora_B.weight": (6, 0)}, "are no LoRA pair"),
        ({"unet.a.lora_A.weight": (), "unet.a.lora_B.weight": ()}, "are no LoRA pair"),
        ({"unet.a.lora_A.weight": (2, 4, 3), "unet.a.lora_B.weight": (6, 2, 1)}, "are no LoRA pair"),
        ({"unet.a.lora_A.weight": (2, 4, 3, 3), "unet.a.lora_B.weight": (6, 2)}, "are no LoRA pair"),
        ({"unet.a.lora_A.weight": (2, 4, 3, 3), "unet.a.lora_B.weight": (6, 2, 3, 3)}, "are no LoRA pair"),
        (pair("text_encoder.q") | pair("text_encoder.text_model.q"), "are one layer under two names"),
    ],
)  # fmt: skip
def test_malformed_weights_are_refused(
    tmp_path: Path, shapes: dict[str, tuple[int, ...]], message: str
) -> None:
    with pytest.raises(AdapterError, match=message):
        read_layout(diffusers_folder(tmp_path, shapes))


LAYER = pair("unet.a.to_q")
BAD_SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"r": 3}, "'unet.a.to_q' has rank 2, its settings say 3"),
    ({"r": "2"}, "is 2, not a sound number"),
    ({"r": None}, "not a sound number"),
    ({"lora_alpha": True}, "not a sound number"),
    ({"lora_alpha": "x" * 100}, "is xxxx"),
    ({"lora_alpha": math.nan}, "is nan, not a sound number"),
    ({"lora_alpha": math.inf}, "is inf, not a sound number"),
    ({"lora_alpha": 1e300}, "not a sound number"),
    ({"lora_alpha": 10**400}, "not a sound number"),
    ({"rank_pattern": ["to_q"]}, "'rank_pattern' is not a table"),
    ({"alpha_pattern": {"(a+)+$": 1}}, "is not a plain module path"),
    ({"alpha_pattern": {"": 1}}, "is not a plain module path"),
    ({"alpha_pattern": {"to_q": None}}, "not a sound number"),
    ({"peft_type": "LOHA"}, "this is a LOHA adapter"),
    ({"use_dora": True}, "do not agree whether it uses DoRA"),
    ({"lora_bias": True}, "LoRA with biases"),
    ({"bias": "all"}, "changes biases"),
    ({"fan_in_fan_out": True}, "Conv1D"),
    ({"use_qalora": True}, "QALoRA"),
    ({"use_bdlora": {"nblocks": 2}}, "BD-LoRA"),
    ({"layer_replication": [[0, 2]]}, "layer-replicating"),
    ({"target_parameters": ["x"]}, "parameter-targeting"),
    ({"trainable_token_indices": [1]}, "token-training"),
    ({"init_lora_weights": "pissa"}, "started from 'pissa'"),
    ({"init_lora_weights": "olora"}, "started from 'olora'"),
    ({"init_lora_weights": {}}, "started from"),
]


@pytest.mark.parametrize(("settings", "message"), BAD_SETTINGS, ids=lambda v: str(v)[:40])
@pytest.mark.parametrize("dialect", ["diffusers", "peft"])
def test_settings_that_are_wrong_or_change_the_arithmetic_are_refused(
    tmp_path: Path, settings: dict[str, Any], message: str, dialect: str
) -> None:
    if dialect == "diffusers":
        flat = {f"unet.{name}": value for name, value in settings.items()}
        folder = diffusers_folder(tmp_path, LAYER, flat)
    else:
        folder = peft_folder(tmp_path, pair("a.to_q"), settings)
        message = message.replace("unet.a", "model.a")
    with pytest.raises(AdapterError) as caught:
        read_layout(folder)
    assert message in caught.value.message


@pytest.mark.parametrize("flag", ["lora_bias", "use_qalora", "use_bdlora", "target_parameters"])
def test_the_refused_settings_are_peft_s_own(flag: str) -> None:
    from peft import LoraConfig

    from hubctl.adapter.layout import _VARIANTS

    assert flag in _VARIANTS
    assert set(_VARIANTS) <= set(LoraConfig.__dataclass_fields__)


def test_a_missing_or_broken_peft_config_is_refused(tmp_path: Path) -> None:
    folder = peft_folder(tmp_path, pair("a.to_q"), {})
    config = folder / "adapter_config.json"
    assert read_layout(folder).modules[0].scale == 1.0  # alpha = rank where nothing is said
    for text, message in (
        ("{", "is not JSON"), ("[]", "is not a JSON object"), ("[" * 100_000, "is not JSON"),
        ('{"modules_to_save": "ab"}', "not a list of names"),
        ('{"modules_to_save": [1]}', "not a list of names"),
        (" " * (1 << 20) + "{}", "larger than 1,048,576 bytes"),
    ):  # fmt: skip
        config.write_text(text)
        with pytest.raises(AdapterError, match=message):
            read_layout(folder)
    config.write_bytes(b"\xff")
    with pytest.raises(AdapterError, match="is not JSON"):
        read_layout(folder)
    config.unlink()
    with pytest.raises(AdapterError, match=r"adapter_config\.json is missing"):
        read_layout(folder)


def test_a_key_outside_the_model_is_refused(tmp_path: Path) -> None:
    folder = peft_folder(tmp_path, pair("a.to_q"), {})
    (folder / "adapter_model.safetensors").write_bytes(weights(pair("a.to_q")))
    with pytest.raises(AdapterError, match="a key that no LoRA has"):
        read_layout(folder)


names = st.sampled_from(["r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "modules_to_save",
                         "peft_type", "use_dora", "bias", "init_lora_weights", "target_modules"])  # fmt: skip
leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text("to_q.^*", max_size=5)
values = (
    leaves
    | st.lists(leaves, max_size=2)
    | st.dictionaries(st.text("to_q.^*", max_size=5), leaves, max_size=2)
)


@given(settings=st.dictionaries(names, values))
def test_any_settings_are_understood_or_refused(
    tmp_path_factory: pytest.TempPathFactory, settings: dict[str, Any]
) -> None:
    folder = tmp_path_factory.mktemp("a")
    with contextlib.suppress(AdapterError):
        for module in read_layout(peft_folder(folder, pair("a.to_q"), settings)).modules:
            assert math.isfinite(module.scale)
            assert json.dumps(module.alpha)
