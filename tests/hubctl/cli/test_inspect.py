"""inspect and check, as typed, here and against a real registry."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from huggingface_hub import HfApi

from hubctl.adapter.findings import CODES
from tests.adapters import UNET, put_nan, write_adapter, write_base
from tests.cli import run_cli
from tests.hubctl.adapter.published import places
from tests.hubctl.adapter.raw import diffusers_folder, hollow, pair, weights

if TYPE_CHECKING:
    from tests.registry_server import RegistryServer

WEIGHTS = "pytorch_lora_weights.safetensors"
KOHYA = {
    "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.lora_down.weight": (4, 2048),
    "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.lora_up.weight": (640, 4),
    "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.alpha": (),
}


@pytest.fixture
def remote(registry: RegistryServer, request: pytest.FixtureRequest) -> str:
    """A user who is logged in to the registry."""
    user = request.node.name.replace("_", "-")[5:35].strip("-")
    token = registry.token(user)
    added = run_cli("remote", "add", "local", registry.endpoint, "--use", "--token-stdin", stdin=token)
    assert added.code == 0, added.err
    return user


def test_inspect_tells_people_and_programs(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", "acme/base")
    ran = run_cli("inspect", folder)
    assert ran.code == 0, ran.err
    for line in (
        "dialect         diffusers",
        "kind            LoRA x 3",
        "served          yes",
        "3 layers (3 in unet), rank 2, alpha 2, scale 1",
        "dtype           F32 x 6",
        "values          finite, trained",
        "base stated     acme/base (card)",
        "attn2.to_k  2     2      1      2x16  8x2  LoRA",
    ):
        assert line in ran.out
    facts = run_cli("inspect", folder, "--json").json()
    assert (facts["dialect"], facts["served"], facts["ranks"], facts["warnings"]) == (
        "diffusers",
        True,
        {"2": 3},
        [],
    )
    assert facts["values"] == {"looked_at": True, "non_finite": [], "idle": []}
    assert facts["layers"][2] == {
        "layer": "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k",
        "kind": "LoRA", "rank": 2, "alpha": 2.0, "scale": 1.0, "a": [2, 16], "b": [8, 2], "conv": False,
    }  # fmt: skip
    assert run_cli("inspect", folder, "-q").out == "diffusers\n"


def test_inspect_names_new_tokens(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", "acme/base")
    assert "new tokens      -\n" in run_cli("inspect", folder).out
    (folder / "embeddings.safetensors").write_bytes(weights({"clip_l": (2, 16)}))
    assert "new tokens      <s0>, <s1>\n" in run_cli("inspect", folder).out
    assert run_cli("inspect", folder, "--json").json()["new_tokens"] == ["<s0>", "<s1>"]


def test_what_is_not_served_is_inspected_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "style.safetensors"
    path.write_bytes(
        weights(KOHYA, metadata={"ss_base_model_version": "sd_v1", "ss_dataset_dirs": "/mnt/x/y"})
    )
    ran = run_cli("inspect", path)
    assert ran.code == 0, ran.err
    for text in (
        "kohya / A1111",
        "base by shapes  SDXL",
        "1 layers idle",
        "base-mismatch",
        "untrained",
        "local-paths",
    ):
        assert text in ran.out
    facts = run_cli("inspect", path, "--json").json()
    found = [finding["code"] for finding in facts["warnings"]]
    assert found == ["unsupported-dialect", "untrained", "base-mismatch", "local-paths"]


def test_many_layers_are_cut_short_unless_asked_for(tmp_path: Path) -> None:
    shapes = {k: s for n in range(30) for k, s in pair(f"unet.blocks.{n}.to_q").items()}
    folder = diffusers_folder(tmp_path, shapes)
    short, whole = run_cli("inspect", folder), run_cli("inspect", folder, "--layers")
    assert (short.out.count("to_q"), whole.out.count("to_q")) == (20, 30)
    assert f"and 10 more: hubctl inspect {folder} --layers" in short.err
    assert len(run_cli("inspect", folder, "--json").json()["layers"]) == 30


def test_nan_is_reported_not_refused(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", "acme/base")
    put_nan(folder / WEIGHTS)
    facts = run_cli("inspect", folder, "--json").json()
    assert facts["served"] is False
    assert [finding["code"] for finding in facts["warnings"]] == ["non-finite"]


@pytest.mark.parametrize(
    ("name", "data", "code"),
    [
        ("a.safetensors", b"\x80\x04.", 5),
        ("a.ckpt", b"\x80\x04.", 5),
        ("nowhere", None, 3),
        ("a.b/c/d", None, 3),
        ("x" * 300, None, 3),
    ],
)
def test_what_cannot_be_inspected(tmp_path: Path, name: str, data: bytes | None, code: int) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    for command in ("inspect", "check"):
        ran = run_cli(command, tmp_path / name, "--json")
        assert (ran.code, ran.out) == (code, "")
        assert json.loads(ran.err)["error"]["hint"]


def test_help_lists_every_code() -> None:
    said = run_cli("inspect", "--help").out
    assert [code for code in CODES if code not in said] == []


def test_inspect_and_check_by_name_and_by_address(
    remote: str, registry: RegistryServer, tmp_path: Path
) -> None:
    base = run_cli("push", write_base(tmp_path / "base"), "--kind", "base", "-q").out.strip()
    repo = run_cli("push", write_adapter(tmp_path / "line-art", base), "-q").out.strip()
    address = f"{registry.endpoint}/{repo}/resolve/main/{WEIGHTS}"
    reports = [run_cli("inspect", what, "--json").json() for what in (repo, f"{repo}@main", address)]
    assert reports[0] == reports[1] == reports[2]
    assert reports[0]["values"] == {"looked_at": False}
    here = run_cli("inspect", tmp_path / "line-art", "--json").json()
    same = ("sha256", "layers", "ranks", "base_stated", "bytes", "warnings", "dtypes")
    assert {key: reports[0][key] for key in same} == {key: here[key] for key in same}
    assert "values          not looked at" in run_cli("inspect", repo).out
    for what in (repo, address):
        ran = run_cli("check", what)
        assert ran.code == 0, ran.err
        assert f"{what} fits {base}: 3 layers" in ran.out
    assert run_cli("check", repo, "--base", tmp_path / "base", "-q").out == "fits\n"
    missing = run_cli("inspect", f"{remote}/nothing")
    assert missing.code == 3
    assert "has no repository" in missing.err


def test_an_adapter_without_a_card_is_checked_against_a_named_base(
    remote: str, registry: RegistryServer, tmp_path: Path
) -> None:
    folder = write_adapter(tmp_path / "a", "acme/base", card=False)
    api = HfApi(endpoint=registry.endpoint, token=registry.token(remote))
    api.create_repo(f"{remote}/a")
    api.upload_file(path_or_fileobj=folder / WEIGHTS, path_in_repo="odd.safetensors", repo_id=f"{remote}/a")
    ran = run_cli("check", f"{remote}/a")
    assert ran.code == 5
    assert f"next: hubctl check {remote}/a --base REF" in ran.err
    assert run_cli("check", f"{remote}/a", "--base", write_base(tmp_path / "base")).code == 0


WIDER = {**UNET, "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight": (8, 24)}
OTHER = {"conv_in.weight": (8, 4, 3, 3)}


@pytest.mark.parametrize(
    ("unet", "code", "verdict", "said"),
    [
        (UNET, 0, "fits", "fits"),
        (WIDER, 10, "partly", "fits partly (2 of 3 parts)"),
        (OTHER, 11, "wrong-base", "wrong base (0 of 3 parts fit)"),
    ],
)
def test_each_verdict_has_its_exit_code(
    tmp_path: Path, unet: dict[str, tuple[int, ...]], code: int, verdict: str, said: str
) -> None:
    base = write_base(tmp_path / "base", unet)
    folder = write_adapter(tmp_path / "a", str(base))
    ran = run_cli("check", folder)
    assert ran.code == code, ran.err
    assert said in ran.out
    told = run_cli("check", folder, "--base", base, "--json")
    facts = json.loads(told.out)
    assert (told.code, facts["verdict"], facts["fits"]) == (code, verdict, code == 0)
    assert len(facts["problems"]) == facts["total"] - facts["matched"]
    assert run_cli("check", folder, "-q", "--file", WEIGHTS).out == f"{verdict}\n"


def test_a_wrong_base_is_told_what_the_adapter_looks_like(tmp_path: Path) -> None:
    name = "down_blocks.0.attentions.0.transformer_blocks.0"
    base = write_base(
        tmp_path / "base", {f"{name}.attn1.to_q.weight": (8, 8), f"{name}.attn2.to_k.weight": (8, 768)}
    )
    shapes = pair(f"unet.{name}.attn1.to_q", ins=8, outs=8) | pair(
        f"unet.{name}.attn2.to_k", ins=2048, outs=8
    )
    ran = run_cli("check", diffusers_folder(tmp_path / "a", shapes), "--base", base)
    assert ran.code == 11
    assert "wrong base: looks like SDXL (1 of 2 parts fit)" in ran.out
    facts = json.loads(run_cli("check", tmp_path / "a", "--base", base, "--json").out)
    assert (facts["looks_like"], facts["base_looks_like"]) == ("sdxl", "sd1")


def test_check_reads_no_values(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    folder = write_adapter(tmp_path / "a", str(base))
    put_nan(folder / WEIGHTS)
    assert run_cli("check", folder).code == 0
    assert run_cli("push", folder).code == 5


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stable Diffusion 1.5 and SDXL, and an adapter of every attention layer of each; headers alone."""
    root = tmp_path_factory.mktemp("published")
    for family, name in (("sd1", "StableDiffusionPipeline"), ("sdxl", "StableDiffusionXLPipeline")):
        layers = {place.module: (place.outs or 0, place.ins or 0) for place in places(family)}
        hollow(root / family / "unet/diffusion_pytorch_model.safetensors",
               {f"{module}.weight": shape for module, shape in layers.items()})  # fmt: skip
        (root / family / "unet/config.json").write_text("{}")
        (root / family / "model_index.json").write_text(json.dumps({"_class_name": name}))
        shapes: dict[str, tuple[int, ...]] = {}
        for module, (outs, ins) in layers.items():
            if module.endswith(("to_q", "to_k", "to_v", "to_out.0")):
                shapes |= pair(f"unet.{module}", rank=16, ins=ins, outs=outs)
        hollow(root / f"{family}-lora" / WEIGHTS, shapes)
    return root


def test_every_module_of_sdxl_is_compared(published: Path) -> None:
    facts = run_cli("check", published / "sdxl-lora", "--base", published / "sdxl", "--json").json()
    assert (facts["verdict"], facts["matched"], facts["total"]) == ("fits", 560, 560)
    other = run_cli("check", published / "sdxl-lora", "--base", published / "sd1")
    assert other.code == 11
    assert "wrong base: looks like SDXL (" in other.out
    assert " and 5" in other.out, "the problems are cut short"
    back = run_cli("check", published / "sd1-lora", "--base", published / "sdxl")
    assert back.code == 11
    assert "wrong base: looks like Stable Diffusion 1.x (" in back.out


def test_kohyas_files_are_compared_too(published: Path, tmp_path: Path) -> None:
    for family in ("sd1", "sdxl"):
        shapes: dict[str, tuple[int, ...]] = {}
        for place in places(family):
            if place.module.endswith(("to_q", "to_k", "to_v", "to_out.0")):
                name = f"lora_unet_{place.module.replace('.', '_')}"
                shapes |= {
                    f"{name}.lora_down.weight": (16, place.ins or 0),
                    f"{name}.lora_up.weight": (place.outs or 0, 16),
                    f"{name}.alpha": (),
                }
        hollow(tmp_path / family / "civitai.safetensors", shapes)
    ran = run_cli("check", tmp_path / "sdxl", "--base", published / "sdxl")
    assert "fits" in ran.out
    assert "560 layers (560 in unet), rank 16\n" in ran.out
    assert "hubctl convert" in ran.err
    facts = run_cli("check", tmp_path / "sdxl", "--base", published / "sdxl", "--json").json()
    assert (facts["dialect"], facts["matched"], facts["alphas"]) == ("kohya", 560, [])
    other = run_cli("check", tmp_path / "sdxl/civitai.safetensors", "--base", published / "sd1")
    assert other.code == 11
    assert "wrong base: looks like SDXL (" in other.out
    assert run_cli("check", tmp_path / "sd1", "--base", published / "sd1").code == 0


def test_a_local_check_loads_no_client_and_no_yaml(published: Path) -> None:
    words = ["check", str(published / "sdxl-lora"), "--base", str(published / "sdxl")]
    code = (
        "import sys\n"
        "from hubctl.cli.main import cli\n"
        "from hubctl.cli.output import Output\n"
        f"assert cli.main({words!r}, obj=Output(), standalone_mode=False) == 0\n"
        "heavy = {'huggingface_hub', 'httpx2', 'yaml', 'rich', 'numpy', 'torch'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
