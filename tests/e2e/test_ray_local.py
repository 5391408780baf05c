"""The server with real Ray, a real registry and the real embedded base; one Ray for all of these tests."""

from __future__ import annotations

import base64
import io
import json
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hubctl.adapter.base_shapes import read_base_shapes
from hubctl.base_models import locate_base
from tests.adapters import put_nan, write_base, write_tensors
from tests.cli import run_cli
from tests.e2e.server import Running, descendants, serving
from tests.registry_server import RegistryServer
from tests.serve.local import write_seg_base

GENERATIONS = "/v1/images/generations"
BASE = "hubctl/emoji-64"
STEPS = 4
LONG_STEPS = 900
"""Of eight images: minutes, so that a request which ends in seconds was cut short."""
LEAVE_S = 60
OWNER = "server-owner"
SESSION = re.compile(r"--session-dir=(\S+)")


@dataclass(frozen=True, slots=True)
class Site:
    """A server with two replicas of an echo base and one of emoji-64, and the registry behind it."""

    server: Running
    registry: RegistryServer
    token: str
    """The server's own, of the user OWNER."""
    work: Path

    def generate(self, **fields: Any) -> tuple[int, dict[str, Any]]:
        return self.server.post(GENERATIONS, {"prompt": "red apple", "seed": 3} | fields)

    def emoji(self, **fields: Any) -> tuple[int, dict[str, Any]]:
        return self.generate(**{"num_inference_steps": STEPS} | fields)

    def push(self, user: str, name: str, *, seed: int) -> Path:
        """Write a small adapter for emoji-64 and push it."""
        folder = write_emoji_adapter(self.work / f"{user}-{name}", seed=seed)
        self.push_folder(folder, f"{user}/{name}", token=self.registry.token(user))
        return folder

    def push_folder(self, folder: Path, repo_id: str, *flags: str, token: str) -> None:
        """Push with the command line."""
        endpoint = self.registry.endpoint
        ran = run_cli("push", folder, "--repo", repo_id, *flags, HF_ENDPOINT=endpoint, HF_TOKEN=token)
        assert ran.code == 0, ran.err


def write_emoji_adapter(folder: Path, *, seed: int, rank: int = 4) -> Path:
    """An untrained adapter on every query projection of emoji-64's UNet, strong enough to be seen."""
    base = locate_base(BASE)
    unet = read_base_shapes(base.path, base.family)["unet"]
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in unet.items():
        if name.endswith("to_v.weight"):
            module = name.removesuffix(".weight")
            shapes[f"unet.{module}.lora_A.weight"] = (rank, shape[1])
            shapes[f"unet.{module}.lora_B.weight"] = (shape[0], rank)
    config = {"unet.r": rank, "unet.lora_alpha": 8 * rank, "unet.target_modules": ["to_v"]}
    metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(config)}
    write_tensors(folder / "pytorch_lora_weights.safetensors", shapes, seed=seed, metadata=metadata)
    (folder / "README.md").write_text(
        f"---\nbase_model: {BASE}\npipeline_tag: text-to-image\ntags: [lora]\n---\n# Test\n"
    )
    return folder


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, registry: RegistryServer) -> Iterator[Site]:
    work = tmp_path_factory.mktemp("server")
    write_base(work / "tiny")
    write_seg_base(work / "tiny-seg")
    (work / "serve.toml").write_text(
        f"""
        [[bases]]
        ref = "{work / "tiny"}"
        min_replicas = 2
        max_replicas = 2
        num_cpus = 0.5
        [bases.engine]
        kind = "echo"

        [[bases]]
        ref = "{work / "tiny-seg"}"
        num_cpus = 0
        [bases.engine]
        kind = "echo"

        [[bases]]
        ref = "emoji-64"
        num_cpus = 0.5
        [bases.engine]
        max_steps = {LONG_STEPS}

        [limits]
        max_steps = {LONG_STEPS}
        """
    )
    token = registry.token(OWNER)
    env = {"HUBCTL_HOME": str(work / "home"), "HF_ENDPOINT": registry.endpoint, "HF_TOKEN": token}
    words: list[str | Path] = ["--config", work / "serve.toml", "--port", "0"]
    with serving(words, work / "log", cwd=work, **env) as server:
        yield Site(server, registry, token, work)


def pixels(answer: dict[str, Any]) -> Any:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["data"][0]["b64_json"])))).astype(int)


def test_ready_with_two_replicas(site: Site) -> None:
    assert site.server.get("/readyz") == (200, {"status": "ready"})
    assert site.server.replicas("engine-tiny") == 2
    assert site.server.replicas("engine-emoji-64") == 1
    assert site.server.replicas("ingress") == 1
    models = site.server.get("/v1/models")[1]["data"]
    assert [m["hubctl"]["base"] for m in models[:3]] == ["tiny", "tiny-seg", BASE]


def test_many_requests_at_once_each_get_their_own_answer(site: Site) -> None:
    with ThreadPoolExecutor(32) as pool:
        seeds = list(range(200))
        found = list(pool.map(lambda seed: site.generate(model="tiny", seed=seed), seeds))
    assert [status for status, _ in found] == [200] * 200
    assert [answer["hubctl"]["seed"] for _, answer in found] == seeds
    again = site.generate(model="tiny", seed=17)[1]
    assert (pixels(found[17][1]) == pixels(again)).all()


def test_the_real_base_draws(site: Site) -> None:
    status, answer = site.emoji(model="emoji-64")
    assert status == 200, answer
    assert answer["hubctl"]["base"] == BASE
    assert answer["hubctl"]["adapters"] == []
    assert pixels(answer).shape == (64, 64, 3)
    assert pixels(answer).std() > 5


@pytest.mark.parametrize("side_px", [16, 512])
def test_segmentation_of_small_and_large_images(site: Site, side_px: int) -> None:
    """Above 100 kB Ray passes arrays through shared memory, and the engine gets them read-only."""
    photo = np.zeros((side_px, side_px, 3), dtype=np.uint8)
    photo[:, side_px // 2 :] = 255
    file = io.BytesIO()
    Image.fromarray(photo).save(file, "PNG")
    fields = {"image": base64.b64encode(file.getvalue()).decode(), "output": "labels"}
    status, answer = site.server.post("/v1/images/segmentations", fields)
    assert status == 200, answer
    assert [(item["label"], item["share"]) for item in answer["data"]] == [("dark", 0.5), ("bright", 0.5)]
    labels = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["image"]))))
    assert (labels == (photo[..., 0] > 0)).all()


def test_an_adapter_pushed_a_moment_ago_is_served_by_its_name(site: Site) -> None:
    status, answer = site.emoji(model="alice/fresh")
    assert (status, answer["error"]["code"]) == (404, "model_not_found")
    folder = site.push("alice", "fresh", seed=1)
    status, answer = site.emoji(model="alice/fresh")
    assert status == 200, answer
    (used,) = answer["hubctl"]["adapters"]
    weights = (folder / "pytorch_lora_weights.safetensors").read_bytes()
    assert used["sha256"] == sha256(weights).hexdigest()
    assert len(used["revision"]) == 40
    plain = site.emoji(model="emoji-64")[1]
    assert np.abs(pixels(answer) - pixels(plain)).max() > 8
    # The same by its commit, by `loras`, and with scale 0 the base's own image.
    assert (pixels(site.emoji(model=f"alice/fresh@{used['revision']}")[1]) == pixels(answer)).all()
    nothing = site.emoji(loras=[{"id": "alice/fresh", "scale": 0.0}])[1]
    assert np.abs(pixels(nothing) - pixels(plain)).max() <= 2


def test_a_new_version_is_served_under_the_same_name(site: Site) -> None:
    site.push("bob", "moving", seed=1)
    before = site.emoji(model="bob/moving")[1]
    site.push("bob", "moving", seed=2)
    # A name may mean the old commit for resolve_ttl_s (one second): the push itself takes about as long.
    for _ in range(50):
        after = site.emoji(model="bob/moving")[1]
        if after["hubctl"]["adapters"] != before["hubctl"]["adapters"]:
            break
    else:
        pytest.fail("still the old commit")
    assert np.abs(pixels(after) - pixels(before)).max() > 8
    old = before["hubctl"]["adapters"][0]["revision"]
    assert (pixels(site.emoji(model=f"bob/moving@{old}")[1]) == pixels(before)).all()


def test_different_adapters_at_once(site: Site) -> None:
    names = [f"carol/mix{i}" for i in range(3)]
    for i, name in enumerate(names):
        site.push("carol", name.partition("/")[2], seed=10 + i)
    wanted = [*names, "emoji-64"] * 2
    alone = {name: pixels(site.emoji(model=name)[1]) for name in set(wanted)}
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda name: site.emoji(model=name), wanted))
    for name, (status, answer) in zip(wanted, found, strict=True):
        assert status == 200, answer
        assert np.abs(pixels(answer) - alone[name]).max() <= 2, name


def test_faults_in_a_replica_keep_their_class_and_hint(site: Site) -> None:
    status, answer = site.emoji(model="emoji-64", scheduler="nonesuch")
    assert status == 400, answer
    assert "nonesuch" in answer["error"]["message"]
    assert answer["error"]["hint"]
    # Past our own gate, straight onto the registry: the server's gate still holds.
    from huggingface_hub import HfApi

    folder = write_emoji_adapter(site.work / "nan", seed=5)
    put_nan(folder / "pytorch_lora_weights.safetensors")
    api = HfApi(endpoint=site.registry.endpoint, token=site.registry.token("dave"))
    api.create_repo("dave/nan")
    api.upload_folder(repo_id="dave/nan", folder_path=folder)
    status, answer = site.emoji(model="dave/nan")
    assert (status, answer["error"]["code"]) == (422, "adapter_refused")
    assert "NaN" in answer["error"]["message"]
    assert site.emoji(model="emoji-64")[0] == 200


def test_a_request_ends_when_its_client_leaves(site: Site) -> None:
    """The hang-up goes from Ray's proxy through the ingress to the engine, and ends the denoising there."""
    gone = {"route": GENERATIONS, "status": "499"}
    before = site.server.metric("hubctl_requests_total", **gone)
    client = HTTPConnection(site.server.url.removeprefix("http://"))
    body = {"prompt": "red apple", "model": "emoji-64", "n": 8, "num_inference_steps": LONG_STEPS}
    client.request("POST", GENERATIONS, json.dumps(body), {"Content-Type": "application/json"})
    _until(lambda: site.server.metric("hubctl_engine_running", base="emoji-64") == 1)
    client.close()
    _until(lambda: site.server.metric("hubctl_engine_running", base="emoji-64") == 0)
    _until(lambda: site.server.metric("hubctl_requests_total", **gone) == before + 1)
    assert site.emoji(model="emoji-64")[0] == 200


def _until(true: Callable[[], bool]) -> None:
    """Ask the server until it says so."""
    deadline_s = time.monotonic() + LEAVE_S
    while not true():
        assert time.monotonic() < deadline_s


def test_an_adapter_deleted_between_look_up_and_download_is_not_found(site: Site) -> None:
    site.push("gil", "lost", seed=4)
    # Looked up, and never downloaded: the name has a meaning for a second yet, its files are gone.
    assert site.server.get("/v1/models/gil/lost")[0] == 200
    from huggingface_hub import HfApi

    api = HfApi(endpoint=site.registry.endpoint, token=site.registry.token("gil"))
    api.delete_repo("gil/lost")
    status, answer = site.emoji(model="gil/lost")
    assert (status, answer["error"]["code"]) == (404, "model_not_found")
    assert "gil/lost" in answer["error"]["message"]


def test_an_adapter_for_another_base_is_refused(site: Site) -> None:
    site.push("erin", "emoji", seed=7)
    status, answer = site.generate(model="tiny", loras=[{"id": "erin/emoji"}])
    assert (status, answer["error"]["code"]) == (409, "adapter_mismatch")


def test_the_command_line_is_a_client_of_it(site: Site, tmp_path: Path) -> None:
    site.push("fay", "ink", seed=8)
    out = tmp_path / "apple.png"
    ran = run_cli(
        "generate", "red apple", "--adapter", "fay/ink:0.5", "--steps", str(STEPS), "-o", out,
        "--server", site.server.url,
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert ran.out.strip() == str(out)
    assert out.read_bytes().startswith(b"\x89PNG")


def test_a_private_adapter_is_served_with_the_token_of_the_server_which_shows_nowhere(site: Site) -> None:
    folder = write_emoji_adapter(site.work / "secret", seed=9)
    site.push_folder(folder, f"{OWNER}/secret", "--private", token=site.token)
    assert site.emoji(model=f"{OWNER}/secret")[0] == 200
    processes = descendants(site.server.pid)
    assert all(site.token not in title for title in processes.values())
    (session,) = {found[1] for title in processes.values() if (found := SESSION.search(title))}
    logs = [path for path in Path(session).rglob("*") if path.is_file()]
    assert len(logs) > 5
    assert all(site.token.encode() not in path.read_bytes() for path in logs)


def test_another_user_of_the_server_gets_404_for_what_the_server_may_not_see(site: Site) -> None:
    folder = write_emoji_adapter(site.work / "hidden", seed=9)
    site.push_folder(folder, "heidi/hidden", "--private", token=site.registry.token("heidi"))
    status, answer = site.emoji(model="heidi/hidden")
    assert (status, answer["error"]["code"]) == (404, "model_not_found")
