"""Adapters read where they lie: how little of a file a registry is asked for, and who gets which token."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from huggingface_hub import HfApi

from hubctl.adapter.inspection import inspect_adapter, sha256_of
from hubctl.errors import AdapterError, InputError, IntegrityError, NotFoundError, UnavailableError
from hubctl.hub.client import HEADER_READ_BYTES, Hub
from hubctl.hub.remotes import add_remote
from hubctl.hub.sources import open_adapter
from hubctl.hub.tokens import save_token
from hubctl.refs import AdapterRef, WebRef
from tests.adapters import write_adapter
from tests.hubctl.adapter.raw import Shapes, container, diffusers_folder, pair, peft_folder, weights
from tests.hubctl.hub.odd_server import Answer, CountingProxy, always, serving

if TYPE_CHECKING:
    from http.server import BaseHTTPRequestHandler

    from tests.registry_server import RegistryServer

WEIGHTS = "pytorch_lora_weights.safetensors"
_numbers = itertools.count()


@pytest.fixture
def repo(registry: RegistryServer) -> str:
    return f"reader{next(_numbers)}/x"


@pytest.fixture
def api(registry: RegistryServer, repo: str) -> HfApi:
    """A stock client, logged in as the owner of `repo`: it uploads also what hubctl refuses."""
    made = HfApi(endpoint=registry.endpoint, token=registry.token(repo.partition("/")[0]))
    made.create_repo(repo)
    return made


def never() -> Hub:
    raise AssertionError("nobody should be asked")


def layers(count: int, ins: int = 1280) -> Shapes:
    found: dict[str, tuple[int, ...]] = {}
    for number in range(count):
        module = f"unet.down_blocks.2.attentions.1.transformer_blocks.{number}.attn1.to_q"
        found |= pair(module, rank=8, ins=ins, outs=ins)
    return found


@pytest.mark.parametrize(("count", "requests"), [(720, 1), (3000, 2)])
def test_a_header_costs_two_requests_and_few_bytes(
    registry: RegistryServer, api: HfApi, repo: str, tmp_path: Path, count: int, requests: int
) -> None:
    folder = diffusers_folder(tmp_path / "a", layers(count), {"unet.r": 8, "unet.lora_alpha": 4})
    size = (folder / WEIGHTS).stat().st_size
    api.upload_file(path_or_fileobj=folder / WEIGHTS, path_in_repo=WEIGHTS, repo_id=repo)
    proxy = CountingProxy(registry.endpoint)
    with serving(proxy) as endpoint, open_adapter(repo, lambda: Hub(endpoint, None, "local")) as source:
        report = inspect_adapter(source.weights, card=source.card, look=source.local)
    asked = proxy.of(WEIGHTS)
    assert len(asked) == requests
    assert sum(asked) == max(HEADER_READ_BYTES, report.header_bytes)
    assert sum(asked) <= 0.01 * size
    assert report == inspect_adapter(folder / WEIGHTS, look=False)
    assert (source.local, source.sha256) == (False, sha256_of(folder / WEIGHTS))
    assert not source.weights.exists(), "the folder with holes is gone"


def test_card_config_and_neighbours_come_along(
    registry: RegistryServer, api: HfApi, repo: str, tmp_path: Path
) -> None:
    folder = peft_folder(tmp_path, pair("encoder.layer.0.q"), {"r": 2, "lora_alpha": 6, "peft_type": "LORA"})
    (folder / "README.md").write_text("---\nbase_model: acme/net\ninstance_prompt: sks\n---\n")
    (folder / "old.bin").write_bytes(b"\x80\x04.")
    api.upload_folder(folder_path=folder, repo_id=repo)
    with open_adapter(repo, lambda: Hub(registry.endpoint, None, "local")) as source:
        report = inspect_adapter(
            source.weights, card=source.card, manifest=source.manifest, beside=source.beside, look=False
        )
    assert (report.dialect, report.scales) == ("peft", (3.0,))
    assert [one.base for one in report.base_stated] == ["acme/net"]
    assert [one.words for one in report.trigger_words] == ["sks"]
    assert [finding.code for finding in report.warnings] == ["pickle"]


@pytest.mark.parametrize(
    ("metadata", "found", "served", "warned"),
    [
        ({}, ("<s0>", "<s1>"), True, []),
        ({"tokens": '["<my-dog>", "<hat>"]'}, ("<my-dog>", "<hat>"), True, []),
        ({"tokens": '["<my-dog>"]'}, (), False, ["refused"]),
    ],
    ids=["unnamed", "named", "misnamed"],
)
def test_new_tokens_are_named_here_and_there(
    registry: RegistryServer, api: HfApi, repo: str, tmp_path: Path,
    metadata: dict[str, str], found: tuple[str, ...], served: bool, warned: list[str],
) -> None:  # fmt: skip
    folder = diffusers_folder(tmp_path / "a", layers(1), {"unet.r": 8, "unet.lora_alpha": 4})
    (folder / "x_emb.safetensors").write_bytes(weights({"clip_l": (2, 16)}, metadata=metadata))
    (folder / "README.md").write_text("---\nbase_model: acme/net\n---\n")
    api.upload_folder(folder_path=folder, repo_id=repo)
    for what in (str(folder), repo):
        with open_adapter(what, lambda: Hub(registry.endpoint, None, "local")) as source:
            report = inspect_adapter(source.weights, card=source.card, beside=source.beside, look=False)
        assert (report.new_tokens, report.served) == (found, served)
        assert [finding.code for finding in report.warnings] == warned


def test_an_address_names_endpoint_revision_and_file(
    registry: RegistryServer, api: HfApi, repo: str, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        data = weights(pair("unet.a", rank=1 if name == "one" else 2), metadata={"name": name})
        api.upload_file(path_or_fileobj=data, path_in_repo=f"sub/{name}.safetensors", repo_id=repo)
    first = api.list_repo_commits(repo)[1].commit_id
    for mark, revision in itertools.product(("resolve", "blob"), ("main", first)):
        address = f"{registry.endpoint}/{repo}/{mark}/{revision}/sub/one.safetensors?download=true"
        with open_adapter(address, never) as source:
            assert inspect_adapter(source.weights, look=False).ranks == {1: 1}
    with open_adapter(f"{registry.endpoint}/{repo}", never, file="sub/two.safetensors") as source:
        assert inspect_adapter(source.weights, look=False).ranks == {2: 1}
    hub = Hub(registry.endpoint, None, "local")
    with pytest.raises(AdapterError, match="holds no safetensors weights"), open_adapter(repo, lambda: hub):
        pass
    with (
        pytest.raises(NotFoundError, match="has no file nothing") as caught,
        open_adapter(repo, lambda: hub, file="nothing.safetensors"),
    ):
        pass
    assert caught.value.hint == "it has sub/one.safetensors, sub/two.safetensors"


@pytest.mark.parametrize("file", ["../x.safetensors", "a/../../x", ""])
def test_a_file_s_name_does_not_climb_out(registry: RegistryServer, api: HfApi, repo: str, file: str) -> None:
    api.upload_file(path_or_fileobj=weights(pair("unet.a")), path_in_repo=WEIGHTS, repo_id=repo)
    hub = Hub(registry.endpoint, None, "local")
    with pytest.raises((InputError, NotFoundError)), open_adapter(repo, lambda: hub, file=file or "/"):
        pass


def test_a_token_goes_only_to_the_address_it_was_stored_for(
    registry: RegistryServer, api: HfApi, repo: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.upload_file(path_or_fileobj=weights(pair("unet.a")), path_in_repo=WEIGHTS, repo_id=repo)
    token = registry.token("somebody")
    proxy = CountingProxy(registry.endpoint)
    with serving(proxy) as endpoint:
        monkeypatch.setenv("HUBCTL_TOKEN", token)
        monkeypatch.setenv("HF_TOKEN", token)
        add_remote(home, "mine", registry.endpoint, use=True)
        save_token(home, registry.endpoint, token, "alice")
        with open_adapter(f"{endpoint}/{repo}/resolve/main/{WEIGHTS}", never):
            assert proxy.tokens == {None}
        save_token(home, endpoint, token, "alice")
        with open_adapter(f"{endpoint}/{repo}/resolve/main/{WEIGHTS}", never):
            assert proxy.tokens == {None, f"Bearer {token}"}


@pytest.mark.parametrize(
    ("url", "endpoint", "ref", "file"),
    [
        ("https://h.co/a/b/resolve/main/x.safetensors", "https://h.co", "a/b@main", "x.safetensors"),
        ("https://h.co/a/b/blob/refs%2Fpr%2F1/d/x.y?z=1#k", "https://h.co", "a/b@refs/pr/1", "d/x.y"),
        ("http://h:81/hub/a/b/raw/v1/x", "http://h:81/hub", "a/b@v1", "x"),
        ("https://h.co/a/b", "https://h.co", "a/b", None),
        ("https://h.co/a/b/", "https://h.co", "a/b", None),
        ("https://h.co/a/b/tree/v2", "https://h.co", "a/b@v2", None),
        ("https://h.co/a/resolve/resolve/main/x", "https://h.co", "a/resolve@main", "x"),
    ],
)
def test_addresses(url: str, endpoint: str, ref: str, file: str | None) -> None:
    assert WebRef.parse(url) == WebRef(endpoint, AdapterRef.parse(ref), file)


@pytest.mark.parametrize(
    "url",
    [
        "https://h.co",
        "https://h.co/a",
        "https://h.co/a/b/resolve",
        "https://h.co/a/b/resolve/main",
        "https://h.co/datasets/a/b/resolve/main/x",
        "https://h.co/a/b/resolve/..%2Fx/y",
        "https://h.co/-a/b",
    ],
)
def test_what_is_no_address_of_an_adapter(url: str) -> None:
    with pytest.raises(InputError):
        WebRef.parse(url)


def info_of(size: int) -> bytes:
    """What a registry says of a repository with one weights file of that size."""
    file = {"rfilename": WEIGHTS, "size": size, "blobId": "0" * 40}
    file |= {"lfs": {"sha256": "0" * 64, "size": size, "pointerSize": 130}}
    return json.dumps({"id": "a/b", "sha": "0" * 40, "siblings": [file], "tags": []}).encode()


def strange(size: int, body: bytes, status: int = 200) -> Answer:
    """A registry that states `size`, and sends `body` whatever is asked of the file."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        api = request.path.startswith("/api/")
        always(200 if api else status, info_of(size) if api else body)(request)

    return answer


GOOD = weights(pair("unet.a"))


@pytest.mark.parametrize(
    ("size", "body", "fault"),
    [
        (len(GOOD), GOOD[:100], IntegrityError),
        (len(GOOD) - 1, GOOD[:-1], AdapterError),
        (1 << 62, GOOD, IntegrityError),
        (0, b"", AdapterError),
        (9, b"\xff" * 9, AdapterError),
        (1 << 40, container(b" " * 300_000), UnavailableError),  # a second part of a file that comes whole
    ],
)
def test_a_registry_that_lies(size: int, body: bytes, fault: type[Exception]) -> None:
    with (
        serving(strange(size, body)) as endpoint,
        pytest.raises(fault),
        open_adapter("a/b", lambda: Hub(endpoint, None, "odd")) as source,
    ):
        inspect_adapter(source.weights, look=False)


def test_a_server_without_ranges_is_read_no_further_than_needed() -> None:
    with (
        serving(strange(len(GOOD), GOOD)) as endpoint,
        open_adapter("a/b", lambda: Hub(endpoint, None, "odd")) as source,
    ):
        assert inspect_adapter(source.weights, look=False).modules == 1


def test_local_paths(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", "acme/base")
    (folder / "loss.png").write_bytes(b"x")
    with open_adapter(str(folder), never) as source:
        assert (source.local, source.weights, source.card["base_model"]) == (
            True,
            folder / WEIGHTS,
            "acme/base",
        )
        assert source.manifest["base"]["id"] == "acme/base"
        assert "loss.png" in source.beside
    with open_adapter(str(folder / WEIGHTS), never) as source:
        assert (source.card, source.beside) == ({}, ()), "a file stands alone"
    (folder / WEIGHTS).rename(folder / "one.safetensors")
    (folder / "two.safetensors").write_bytes(GOOD)
    with pytest.raises(AdapterError, match="holds several"), open_adapter(str(folder), never):
        pass
    with open_adapter(str(folder), never, file="two.safetensors") as source:
        assert source.weights == folder / "two.safetensors"


@pytest.mark.parametrize("name", ["lora.ckpt", "folder/pytorch_lora_weights.bin"])
def test_nothing_but_a_pickle(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"\x80\x04.")
    what = tmp_path / name.partition("/")[0]
    with pytest.raises(AdapterError, match="is a pickle"), open_adapter(str(what), never):
        pass


def test_where_a_registry_sends_us_gets_the_range_and_not_the_token() -> None:
    came: list[tuple[str | None, str | None]] = []

    def store(request: BaseHTTPRequestHandler) -> None:
        came.append((request.headers.get("Range"), request.headers.get("Authorization")))
        always(206, GOOD)(request)

    def registry(request: BaseHTTPRequestHandler) -> None:
        if request.path.startswith("/api/"):
            always(200, info_of(len(GOOD)))(request)
        else:
            always(302, b"", Location=f"{elsewhere}/blob")(request)

    with (
        serving(store) as elsewhere,
        serving(registry) as endpoint,
        open_adapter("a/b", lambda: Hub(endpoint, "secret-token", "odd")) as source,
    ):
        assert inspect_adapter(source.weights, look=False).modules == 1
    assert came == [(f"bytes=0-{len(GOOD) - 1}", None)]
