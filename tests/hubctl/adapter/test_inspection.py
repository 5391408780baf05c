"""The report of a weights file: numbers beside those that wrote it, and one file for each warning."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from hubctl.adapter.findings import CODES
from hubctl.adapter.inspection import Inspection, as_data, inspect_adapter
from hubctl.errors import AdapterError
from tests.hubctl.adapter.raw import container, diffusers_folder, pair, peft_folder, weights

BLOCK = "down_blocks_0_attentions_0_transformer_blocks_0"
CROSS = f"lora_unet_{BLOCK}_attn2_to_k"
SELF = f"lora_unet_{BLOCK}_attn1_to_q"
TRAINED_ON = {
    "ss_base_model_version": "sd_v1",
    "ss_network_alpha": "2.0",
    "modelspec.architecture": "stable-diffusion-v1/lora",
    "modelspec.trigger_phrase": "sks style",
    "ss_tag_frequency": json.dumps({"10_sks dog": {"sks": 20, "dog": 18, "grass": 2}}),
}


def kohya_tensors(
    rank: int = 4, width: int = 768, alpha: float | None = 2.0, dtype: torch.dtype = torch.float16
) -> dict[str, torch.Tensor]:
    tensors = {}
    for name, ins in ((CROSS, width), (SELF, 320)):
        tensors[f"{name}.lora_down.weight"] = torch.randn(rank, ins, dtype=dtype)
        tensors[f"{name}.lora_up.weight"] = torch.randn(320, rank, dtype=dtype)
        if alpha is not None:
            tensors[f"{name}.alpha"] = torch.tensor(alpha, dtype=dtype)
    return tensors


def written(
    folder: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None, **more: Any
) -> Inspection:
    save_file(dict(tensors), folder / "x.safetensors", metadata)
    return inspect_adapter(folder / "x.safetensors", **more)


def codes(report: Inspection) -> list[str]:
    return [finding.code for finding in report.warnings]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_kohya_file(tmp_path: Path, dtype: torch.dtype) -> None:
    report = written(tmp_path, kohya_tensors(dtype=dtype), TRAINED_ON)
    assert (report.dialect, report.kinds, report.served) == ("kohya", {"LoRA": 2}, False)
    assert (report.ranks, report.alphas, report.scales) == ({4: 2}, (2.0,), (0.5,))
    assert report.components == {"unet": 2}
    assert report.parameters == 4 * (768 + 320 + 320 + 320)
    assert report.bytes == (tmp_path / "x.safetensors").stat().st_size
    assert report.values is not None
    assert (report.values.non_finite, report.values.idle) == ((), ())
    assert report.base_shapes == "sd1"
    assert [(one.source, one.family) for one in report.base_stated] == [
        ("modelspec.architecture", "sd1"), ("ss_base_model_version", "sd1"),
    ]  # fmt: skip
    assert [(one.words, one.source) for one in report.trigger_words] == [
        ("sks style", "modelspec.trigger_phrase"), ("sks dog", "ss_tag_frequency"),
        ("sks", "ss_tag_frequency"), ("dog", "ss_tag_frequency"),
    ]  # fmt: skip
    assert codes(report) == ["unsupported-dialect"]
    json.dumps(as_data(report), allow_nan=False)


def test_a_header_alone_says_what_it_can(tmp_path: Path) -> None:
    save_file(kohya_tensors(), tmp_path / "x.safetensors", TRAINED_ON)
    whole = inspect_adapter(tmp_path / "x.safetensors")
    report = inspect_adapter(tmp_path / "x.safetensors", look=False)
    assert report.values is None
    assert as_data(report)["values"] == {"looked_at": False}
    assert (report.alphas, report.scales) == (whole.alphas, whole.scales), "ss_network_alpha stands in"
    assert (report.ranks, report.base_shapes) == (whole.ranks, whole.base_shapes)


@pytest.mark.parametrize("form", ["diffusers", "peft"])
def test_a_served_adapter(tmp_path: Path, form: str) -> None:
    shapes = pair("unet.mid.attn2.to_k", rank=2, ins=2048, outs=640)
    if form == "diffusers":
        folder = diffusers_folder(tmp_path, shapes, {"unet.r": 2, "unet.lora_alpha": 8})
        report = inspect_adapter(folder / "pytorch_lora_weights.safetensors")
        assert report.base_shapes == "sdxl"
    else:
        config = {"r": 2, "lora_alpha": 8, "use_rslora": True, "base_model_name_or_path": "acme/net"}
        folder = peft_folder(tmp_path, pair("encoder.layer.0.q", rank=2), config)
        report = inspect_adapter(folder / "adapter_model.safetensors")
        assert [one.base for one in report.base_stated] == ["acme/net"]
    assert (report.dialect, report.served) == (form, True)
    assert (report.ranks, report.alphas) == ({2: 1}, (8.0,))
    assert report.scales == ((4.0,) if form == "diffusers" else (pytest.approx(8 / 2**0.5, abs=1e-5),))


def test_the_card_and_the_manifest_name_base_and_trigger(tmp_path: Path) -> None:
    report = written(
        tmp_path,
        kohya_tensors(),
        card={"base_model": ["acme/one", "acme/two"], "instance_prompt": "sks"},
        manifest={"base": {"id": "acme/one"}, "settings": {"instance_prompt": "a photo of sks"}},
    )
    assert [(one.base, one.source) for one in report.base_stated] == [("acme/one", "card")]
    assert [(one.words, one.source) for one in report.trigger_words] == [
        ("sks", "card"),
        ("a photo of sks", "manifest"),
    ]


def changed(**changes: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """kohya's tensors with those of the cross-attention changed, by the end of their names."""
    tensors = kohya_tensors()
    for part, tensor in changes.items():
        key = f"{CROSS}.{part}" + ("" if part == "alpha" else ".weight")
        tensors.pop(key, None)
        if tensor is not None:
            tensors[key] = tensor
    return tensors


HALF = torch.float16
NAN = torch.full((320, 4), float("nan"), dtype=HALF)
ZERO = torch.zeros(320, 4, dtype=HALF)
IDLE = {key: torch.zeros_like(t) if "lora_up" in key else t for key, t in kohya_tensors().items()}


@pytest.mark.parametrize(
    ("code", "tensors", "message"),
    [
        ("unpaired", changed(lora_up=None), "1 of 2 layers lack a tensor: 'unet.down_blocks_0_"),
        ("unpaired", changed(lora_down=None), "has no A"),
        ("bad-shape", changed(lora_up=torch.ones(320, 5, dtype=HALF)), "has A [4, 768] and B [320, 5]"),
        ("non-finite", changed(lora_up=NAN), "1 tensors hold NaN or infinity"),
        ("idle-layers", changed(lora_up=ZERO), "1 of 2 layers multiply by zero"),
        ("untrained", IDLE, "the adapter changes nothing"),
        ("no-alpha", kohya_tensors(alpha=None), "scale 1, is assumed"),
        (
            "mixed-ranks",
            changed(lora_down=torch.ones(8, 768, dtype=HALF), lora_up=torch.ones(320, 8, dtype=HALF)),
            "ranks 4 to 8, 2 different ones",
        ),
        ("mixed-dtypes", changed(lora_up=torch.ones(320, 4)), "tensors are F16, F32"),
        ("unknown-keys", kohya_tensors() | {"emb.weight": torch.ones(2)}, "'emb.weight' first"),
        ("unsupported-kind", {f"{CROSS}.oft_blocks": torch.ones(4, 80, 80)}, "OFT: hubctl serves LoRA"),
        ("unsupported-dialect", kohya_tensors(), "the kohya / A1111 spelling is not served as it is"),
    ],
)
def test_what_is_odd_in_a_file(
    tmp_path: Path, code: str, tensors: dict[str, torch.Tensor], message: str
) -> None:
    report = written(tmp_path, tensors, TRAINED_ON)
    (finding,) = [finding for finding in report.warnings if finding.code == code]
    assert message in finding.message
    assert code not in codes(written(tmp_path, kohya_tensors(), TRAINED_ON)) or code == "unsupported-dialect"
    assert set(codes(report)) <= set(CODES)


@pytest.mark.parametrize(
    ("metadata", "code", "message"),
    [
        ({}, "no-base", "nothing states which base"),
        (
            {"ss_base_model_version": "sdxl_base_v1-0"},
            "base-mismatch",
            "says sdxl_base_v1-0 (SDXL), the shapes say Stable Diffusion 1.x",
        ),
        (
            {"ss_sd_model_name": "/mnt/models/sd.safetensors", "ss_output_name": "C:\\Users\\me\\x"},
            "local-paths",
            "ss_output_name, ss_sd_model_name",
        ),
    ],
)
def test_what_is_odd_in_metadata(tmp_path: Path, metadata: dict[str, str], code: str, message: str) -> None:
    report = written(tmp_path, kohya_tensors(), metadata)
    (finding,) = [finding for finding in report.warnings if finding.code == code]
    assert message in finding.message


def test_files_beside_the_weights(tmp_path: Path) -> None:
    report = written(tmp_path, kohya_tensors(), TRAINED_ON, beside=["a.PT", "logs/b.pkl", "run.py", "a.png"])
    assert codes(report)[:2] == ["pickle", "code"]
    assert report.warnings[0].message == "a.PT (and 1 more) is a pickle; it was not opened"


def test_what_the_gate_refuses_otherwise(tmp_path: Path) -> None:
    folder = diffusers_folder(tmp_path, pair("unet.mid.attn2.to_k"), {"unet.lora_alpha": 1e6})
    report = inspect_adapter(folder / "pytorch_lora_weights.safetensors")
    assert ("refused" in codes(report), report.served) == (True, False)
    assert "has scale" in next(f.message for f in report.warnings if f.code == "refused")


def test_dora_without_a_difference_is_not_idle(tmp_path: Path) -> None:
    tensors = IDLE | {f"{name}.dora_scale": torch.ones(320, 1, dtype=HALF) for name in (CROSS, SELF)}
    report = written(tmp_path, tensors, TRAINED_ON)
    assert report.values is not None
    assert report.values.idle == ()
    assert {layer.kind for layer in report.layers} == {"DoRA"}


@pytest.mark.parametrize(
    "text", ['{"a": ', "[1]", '{"x": {"tag": "many"}}', "[" * 100_000, '{"x": {"t": 1e400, "u": true}}']
)
def test_tags_of_a_stranger_do_no_harm(tmp_path: Path, text: str) -> None:
    assert written(tmp_path, kohya_tensors(), {"ss_tag_frequency": text}).trigger_words == ()


@pytest.mark.parametrize("alpha", [float("nan"), float("inf")])
def test_an_alpha_that_is_no_number(tmp_path: Path, alpha: float) -> None:
    report = written(tmp_path, kohya_tensors(alpha=alpha), TRAINED_ON)
    assert (report.alphas, report.scales) == ((), ())
    assert "non-finite" in codes(report)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("x.safetensors", b"\x80\x04."),
        ("x.safetensors", container(b'{"a": 1')),
        ("x.safetensors", weights(pair("unet.a"))[:-1]),
        ("x.ckpt", weights(pair("unet.a"))),
    ],
)
def test_what_is_broken_or_a_pickle_is_an_error(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(AdapterError):
        inspect_adapter(tmp_path / name)


ODD_NAMES = st.lists(
    st.one_of(
        st.sampled_from(
            [f"{CROSS}.{end}" for end in ("alpha", "lora_up.weight", "hada_w1_a", "oft_blocks", "x")]
        ),
        st.sampled_from(
            ["unet.", ".lora_A.weight", "lora_A.weight", "base_model.model.a", "on_input", "alpha"]
        ),
        st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), min_size=1, max_size=12),
    ),
    max_size=6,
    unique=True,
)


@given(ODD_NAMES, st.lists(st.integers(0, 3), max_size=4), st.sampled_from(["F32", "BF16", "U8"]))
def test_any_sound_file_has_a_report(names: list[str], shape: list[int], dtype: str) -> None:
    with tempfile.TemporaryDirectory() as made:
        path = Path(made) / "x.safetensors"
        path.write_bytes(weights({name: tuple(shape) for name in names}, dtype=dtype))
        report = inspect_adapter(path)
        assert set(codes(report)) <= set(CODES)
        json.dumps(as_data(report), allow_nan=False)
