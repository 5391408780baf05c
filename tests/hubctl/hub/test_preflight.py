"""What a push looks at before it sends a byte."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError

from hubctl.adapter.diff import diff
from hubctl.errors import AccessError, ConflictError, InputError
from hubctl.hub.client import Hub
from hubctl.hub.preflight import CODES, find_local_paths
from hubctl.hub.pull import pull
from hubctl.hub.push import plan_push, push
from hubctl.refs import AdapterRef
from hubctl.registry.auth import create_token
from tests.adapters import contents, write_adapter, write_base
from tests.cli import run_cli
from tests.hubctl.hub.odd_server import CountingProxy, serving

if TYPE_CHECKING:
    from tests.registry_server import RegistryServer

WEIGHTS = "pytorch_lora_weights.safetensors"
_numbers = itertools.count()


@pytest.fixture
def user() -> str:
    return f"planner{next(_numbers)}"


@pytest.fixture
def hub(registry: RegistryServer, user: str) -> Hub:
    return Hub(registry.endpoint, registry.token(user), "local")


@pytest.fixture
def folder(hub: Hub, tmp_path: Path) -> Path:
    base = push(hub, write_base(tmp_path / "base"), kind="base").repo_id
    return write_adapter(tmp_path / "a", base)


@pytest.mark.parametrize(
    ("secret", "kind"),
    [
        ("hf_" + "a1B2" * 9, "a token of Hugging Face"),
        ("AKIA" + "ABCD" * 4, "a key of AWS"),
        ("ghp_" + "aB3d" * 9, "a token of GitHub"),
        ("-----BEGIN OPENSSH " + "PRIVATE KEY-----", "a private key"),
        (None, "a token of a hubctl registry"),
    ],
)
def test_secrets_stay_here(hub: Hub, folder: Path, secret: str | None, kind: str) -> None:
    secret = secret or str(hub.token)
    (folder / "notes.txt").write_text(f"first line\nkey = {secret}\n")
    with pytest.raises(InputError) as caught:
        push(hub, folder)
    assert f"notes.txt, line 2 holds {kind}" in str(caught.value)
    assert secret not in str(caught.value) + str(caught.value.hint)


@pytest.mark.parametrize("text", ["hf_xxx", "hubctl_home", "AKIA", "BEGIN PUBLIC KEY", "x" * 500])
def test_what_only_looks_like_a_secret_may_go(hub: Hub, folder: Path, text: str) -> None:
    (folder / "notes.txt").write_text(text)
    assert plan_push(hub, folder).changes["notes.txt"] == "new"


@pytest.mark.parametrize(
    ("more", "reason"),
    [("Grüße".encode("latin-1"), "is not UTF-8 text"), (b"x" * (1 << 20), "limit 1,048,576")],
)
def test_a_card_that_no_registry_takes_creates_nothing(
    hub: Hub, folder: Path, user: str, more: bytes, reason: str
) -> None:
    card = folder / "README.md"
    card.write_bytes(card.read_bytes() + more)
    with pytest.raises(InputError, match=reason):
        push(hub, folder, f"{user}/a")
    with pytest.raises(RepositoryNotFoundError):
        hub.api().model_info(f"{user}/a")


def test_a_token_that_may_not_write_sends_no_byte(
    hub: Hub, folder: Path, registry: RegistryServer, user: str
) -> None:
    push(hub, folder)
    (folder / "notes.txt").write_text("more")
    proxy = CountingProxy(registry.endpoint)
    with serving(proxy) as endpoint, pytest.raises(AccessError):
        push(Hub(endpoint, create_token(registry.root, user, scope="read"), "local"), folder)
    assert {method for method, _, _ in proxy.seen} == {"GET"}


def test_a_plan_names_every_change_and_makes_none(hub: Hub, folder: Path, user: str) -> None:
    api = HfApi(hub.endpoint, token=hub.token)
    first = plan_push(hub, folder)
    assert (first.parent, first.unchanged, set(first.changes.values())) == (None, False, {"new"})
    with pytest.raises(RepositoryNotFoundError):
        api.model_info(f"{user}/a")

    (folder / "old.txt").write_text("old")
    commit = push(hub, folder).commit
    assert plan_push(hub, folder).unchanged
    (folder / "old.txt").unlink()
    (folder / "new.txt").write_text("new")
    (folder / "README.md").write_text((folder / "README.md").read_text() + "\nMore.\n")
    plan = plan_push(hub, folder)
    assert plan.parent == commit
    assert plan.changes == {
        "README.md": "changed", "hubctl.json": "same", "new.txt": "new", "old.txt": "removed",
        WEIGHTS: "same",
    }  # fmt: skip
    assert plan.sizes["new.txt"] == 3
    assert api.model_info(f"{user}/a").sha == commit


def test_a_tag_names_the_pushed_commit_and_does_not_move(hub: Hub, folder: Path, user: str) -> None:
    commit = push(hub, folder, tag="v1").commit
    assert push(hub, folder, tag="v1").commit == commit
    assert hub.refs(f"{user}/a", "tag") == {"v1": commit}
    (folder / "notes.txt").write_text("more")
    with pytest.raises(ConflictError, match="has a tag 'v1'"):
        push(hub, folder, tag="v1")
    assert HfApi(hub.endpoint).model_info(f"{user}/a").sha == commit


def test_a_dry_run_as_typed(hub: Hub, folder: Path, user: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    monkeypatch.setenv("HF_TOKEN", str(hub.token))
    rows = run_cli("push", folder, "--dry-run", "--json").json()
    assert {row["change"] for row in rows} == {"new"}
    assert {row["path"]: row["size_bytes"] for row in rows}[WEIGHTS] == (folder / WEIGHTS).stat().st_size
    run_cli("push", folder, "--tag", "v1")
    shown = run_cli("push", folder, "--dry-run")
    assert f"{user}/a: nothing to push" in shown.err
    assert run_cli("tag", f"{user}/a", "--json").json()[0]["name"] == "v1"


@pytest.mark.parametrize(
    ("text", "path"),
    [
        (r"data in C:\Users\alice\photos\x.png, all", r"C:\Users\alice\photos\x.png,"),
        ("see /Users/alice/photos", "/Users/alice/photos"),
        ('{"dir": "/workspace/data/img"}', "/workspace/data/img"),
        ("[it](file:///srv/x)", "file:///srv/x"),
        ("in ~/photos of mine", "~/photos"),
        ("https://example.org/data/alice/x", None),
        ("a/data/b and to_q/to_k", None),
        ("ratio 3:4, C: major", None),
    ],
)
def test_paths_of_this_machine(tmp_path: Path, text: str, path: str | None) -> None:
    (tmp_path / "README.md").write_text(f"first\n{text}\nand again {text}\n")
    (tmp_path / "x.png").write_text(text)
    found = list(find_local_paths({name: tmp_path / name for name in ("README.md", "x.png")}, {}))
    assert [one.code for one in found] == ["local-paths"] * (path is not None)
    assert not found or f"README.md, line 2 names {path}" in found[0].message


def test_paths_in_the_metadata_of_weights() -> None:
    metadata = {"ss_dataset_dirs": '{"/data/img/10_sks": {}}', "ss_output_name": "style", "format": "pt"}
    (found,) = find_local_paths({}, metadata)
    assert "ss_dataset_dirs" in found.message
    assert "ss_output_name" not in found.message


def test_warnings_do_not_stand_in_the_way(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = folder / "README.md"
    card.write_text(card.read_text().replace("license: apache-2.0\n", "") + "\nFrom /mnt/alice/photos.\n")
    assert [one.code for one in plan_push(hub, folder).warnings] == ["local-paths", "no-licence"]
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    monkeypatch.setenv("HF_TOKEN", str(hub.token))
    assert "[no-licence]" in run_cli("push", folder, "--dry-run").err
    pushed = run_cli("push", folder, "--json")
    assert [one["code"] for one in pushed.json()["warnings"]] == ["local-paths", "no-licence"]
    assert "for example the base's: `license: apache-2.0`" in pushed.err
    card.write_text(
        card.read_text().replace("license: apache-2.0\n", "").replace("/mnt/alice/photos", "home")
    )
    card.write_text(card.read_text().replace("---\n", "---\nlicense: mit\n", 1))
    assert plan_push(hub, folder).warnings == []


def test_help_lists_every_code() -> None:
    said = run_cli("push", "--help").out
    assert [code for code, meaning in CODES.items() if f"{code} " not in said or meaning not in said] == []


def test_a_copy_for_other_programs_goes_along(
    hub: Hub, folder: Path, user: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(folder)
    copy = "kohya/a.safetensors"
    assert plan_push(hub, folder, also=["kohya"]).changes[copy] == "new"
    pushed = push(hub, folder, also=["kohya"])
    assert push(hub, folder, also=["kohya"]).unchanged
    assert contents(folder) == before
    # hubctl itself takes what it serves, and leaves the copy there.
    pulled = pull(hub, AdapterRef(f"{user}/a"), cache=tmp_path / "cache")
    assert contents(pulled.path) == before
    path = HfApi(hub.endpoint, token=hub.token).hf_hub_download(
        pushed.repo_id, copy, revision=pushed.commit, cache_dir=tmp_path / "hf"
    )
    compared = diff(folder, Path(path))
    assert (compared.dialects, compared.change, compared.added) == (("diffusers", "kohya"), 0, ())
    assert push(hub, folder).commit != pushed.commit, "without --also the copy goes again"
    (folder / "kohya").mkdir()
    (folder / copy).write_bytes(Path(path).read_bytes())
    with pytest.raises(ConflictError, match=r"kohya/a\.safetensors already"):
        push(hub, folder, also=["kohya"])
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    monkeypatch.setenv("HF_TOKEN", str(hub.token))
    (folder / copy).unlink()
    rows = run_cli("push", folder, "--also", "kohya", "--dry-run", "--json").json()
    assert copy in [row["path"] for row in rows]
