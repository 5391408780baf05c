"""What stock huggingface_hub does against a registry; each function is run in a process of its own.

`python stock_scenarios.py NAME BOB`, with HOME, HF_ENDPOINT and HF_TOKEN set and nothing else: the library
reads them at import, and keeps caches in the home that must not outlive a test. BOB is another user's token.
Nothing of hubctl is imported, so that environments with other versions of the library can run it.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    snapshot_download,
)
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

CARD = """---
base_model: hubctl/emoji-64
library_name: diffusers
license: cc-by-sa-4.0
tags:
- lora
- text-to-image
---
# A drawing style
"""
# Noise cannot be compressed, zeros very much; the repeated noise is found again as chunks already sent.
NOISE = random.Random(7).randbytes(5_000_000)
LARGE = NOISE + bytes(2_000_000) + NOISE[:3_000_000] + random.Random(8).randbytes(2_000_123)

api = HfApi()


def uploads_and_downloads_a_folder() -> None:
    assert api.whoami()["name"] == "alice"
    url = api.create_repo("style")
    assert url.repo_id == "alice/style"
    assert api.create_repo("alice/style", exist_ok=True) == url
    folder = Path("style")
    (folder / "samples").mkdir(parents=True)
    (folder / "README.md").write_text(CARD)
    (folder / "config.json").write_text("{}\n")
    (folder / "empty.txt").touch()
    (folder / "samples" / "0.png").write_bytes(b"\x89PNG\r\n\x1a\n" + NOISE[:20_000])
    (folder / "pytorch_lora_weights.safetensors").write_bytes(LARGE)
    first = api.upload_folder(repo_id="alice/style", folder_path=folder, commit_message="first")
    assert first.commit_url == f"{api.endpoint}/alice/style/commit/{first.oid}"

    info = api.model_info("alice/style", files_metadata=True)
    assert info.sha == first.oid
    assert (info.author, info.pipeline_tag, info.library_name) == ("alice", "text-to-image", "diffusers")
    assert info.card_data is not None
    assert info.card_data.base_model == "hubctl/emoji-64"
    assert "base_model:adapter:hubctl/emoji-64" in (info.tags or [])
    files = {sibling.rfilename: sibling for sibling in info.siblings or []}
    assert sorted(files) == [
        ".gitattributes",
        "README.md",
        "config.json",
        "empty.txt",
        "pytorch_lora_weights.safetensors",
        "samples/0.png",
    ]
    assert files["pytorch_lora_weights.safetensors"].size == len(LARGE)
    assert files["pytorch_lora_weights.safetensors"].lfs is not None
    assert files["samples/0.png"].lfs is not None
    assert files["config.json"].lfs is None

    path = api.hf_hub_download("alice/style", "pytorch_lora_weights.safetensors")
    assert Path(path).read_bytes() == LARGE
    snapshot = Path(snapshot_download("alice/style", revision=first.oid))
    for file in folder.rglob("*"):
        assert file.is_dir() or (snapshot / file.relative_to(folder)).read_bytes() == file.read_bytes()

    again = api.upload_folder(repo_id="alice/style", folder_path=folder)
    assert again.oid == first.oid  # nothing changed: no commit


def compares_checksums() -> None:
    api.create_repo("sums")
    change = [CommitOperationAdd("README.md", CARD.encode()), CommitOperationAdd("w.bin", LARGE)]
    api.create_commit("alice/sums", change, commit_message="add")
    snapshot_download("alice/sums")
    assert api.verify_repo_checksums("alice/sums").checked_count == 3


def moves_sixty_megabytes() -> None:
    data = random.Random(60).randbytes(60_000_000)
    api.create_repo("heavy", private=True)
    api.upload_file(path_or_fileobj=data, path_in_repo="w.safetensors", repo_id="alice/heavy")
    assert Path(api.hf_hub_download("alice/heavy", "w.safetensors")).read_bytes() == data


def moves_five_thousand_files() -> None:
    folder = Path("many")
    for number in range(5000):
        path = folder / f"{number % 50:02}" / f"{number:04}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(number))
    api.create_repo("many")
    api.upload_folder(repo_id="alice/many", folder_path=folder)
    assert len(api.list_repo_files("alice/many")) == 5001
    assert len(list(api.list_repo_tree("alice/many", "07"))) == 100
    snapshot = Path(snapshot_download("alice/many"))
    assert all((snapshot / f"{n % 50:02}" / f"{n:04}.txt").read_text() == str(n) for n in range(5000))


def changes_files_step_by_step() -> None:
    api.create_repo("steps")
    head = api.model_info("alice/steps").sha
    change = [CommitOperationAdd("a/one.txt", b"1"), CommitOperationAdd("a/weights.bin", NOISE)]
    first = api.create_commit("alice/steps", change, commit_message="add", parent_commit=head)
    with pytest.raises(HfHubHTTPError) as caught:
        api.create_commit(
            "alice/steps", [CommitOperationAdd("late.txt", b"")], commit_message="x", parent_commit=head
        )
    assert caught.value.response.status_code == 412
    move: list[CommitOperationCopy | CommitOperationDelete] = [
        CommitOperationCopy("a/weights.bin", "b.bin"),
        CommitOperationDelete("a/one.txt"),
    ]
    api.create_commit(
        "alice/steps", move, commit_message="move", commit_description="why", parent_commit=first.oid[:7]
    )
    assert [commit.title for commit in api.list_repo_commits("alice/steps")] == [
        "move",
        "add",
        "initial commit",
    ]
    entries = {entry.path: entry for entry in api.list_repo_tree("alice/steps", recursive=True, expand=True)}
    assert sorted(entries) == [".gitattributes", "a", "a/weights.bin", "b.bin"]
    assert entries["b.bin"].last_commit.title == "move"  # type: ignore[union-attr]
    assert entries["a/weights.bin"].last_commit.title == "add"  # type: ignore[union-attr]
    assert [entry.path for entry in api.list_repo_tree("alice/steps", "a")] == ["a/weights.bin"]
    assert [info.path for info in api.get_paths_info("alice/steps", ["b.bin", "a", "gone"])] == ["b.bin", "a"]
    assert Path(api.hf_hub_download("alice/steps", "b.bin")).read_bytes() == NOISE
    assert Path(api.hf_hub_download("alice/steps", "a/one.txt", revision=first.oid)).read_text() == "1"
    for path, revision, expected in (
        ("gone", "main", EntryNotFoundError),
        ("b.bin", "nowhere", RevisionNotFoundError),
    ):
        with pytest.raises(expected):
            api.hf_hub_download("alice/steps", path, revision=revision)
    api.delete_folder("a", "alice/steps")
    assert api.list_repo_files("alice/steps") == [".gitattributes", "b.bin"]


def names_revisions_with_slashes() -> None:
    api.create_repo("refs")
    first = api.upload_file(path_or_fileobj=b"1", path_in_repo="n", repo_id="alice/refs")
    api.create_branch("alice/refs", branch="dev/x", revision=first.oid[:12])
    second = api.upload_file(path_or_fileobj=b"2", path_in_repo="n", repo_id="alice/refs", revision="dev/x")
    api.create_tag("alice/refs", tag="v/1.0", revision="dev/x", tag_message="good")
    refs = api.list_repo_refs("alice/refs")
    assert {ref.name: ref.target_commit for ref in refs.branches} == {"main": first.oid, "dev/x": second.oid}
    assert [(ref.name, ref.ref, ref.target_commit) for ref in refs.tags] == [
        ("v/1.0", "refs/tags/v/1.0", second.oid)
    ]
    for revision in ("dev/x", "v/1.0", "refs/heads/dev/x", "refs/tags/v/1.0", second.oid, second.oid[:8]):
        assert api.model_info("alice/refs", revision=revision).sha == second.oid
    assert Path(api.hf_hub_download("alice/refs", "n", revision="v/1.0")).read_text() == "2"
    assert (Path(snapshot_download("alice/refs", revision="dev/x")) / "n").read_text() == "2"
    assert len(list(api.list_repo_tree("alice/refs", revision="dev/x"))) == 2
    repeats: tuple[Callable[[], None], ...] = (
        lambda: api.create_branch("alice/refs", branch="dev/x"),
        lambda: api.create_tag("alice/refs", tag="v/1.0"),
    )
    for again in repeats:
        with pytest.raises(HfHubHTTPError) as caught:
            again()
        assert caught.value.response.status_code == 409
    api.create_branch("alice/refs", branch="dev/x", exist_ok=True)
    api.delete_branch("alice/refs", branch="dev/x")
    api.delete_tag("alice/refs", tag="v/1.0")
    assert [ref.name for ref in api.list_repo_refs("alice/refs").branches] == ["main"]


def finds_models() -> None:
    for number in range(5):
        api.create_repo(f"find-{number}", private=number == 4)
        if number % 2 == 0:
            api.upload_file(
                path_or_fileobj=CARD.encode(), path_in_repo="README.md", repo_id=f"alice/find-{number}"
            )
    base = "base_model:adapter:hubctl/emoji-64"
    assert [model.id for model in api.list_models(filter=base, search="find", author="alice")] == [
        "alice/find-4",
        "alice/find-2",
        "alice/find-0",
    ]
    assert [m.id for m in api.list_models(filter=[base, "lora"], search="FIND-2")] == ["alice/find-2"]
    assert [m.id for m in api.list_models(search="find", token=False, filter=base)] == [
        "alice/find-2",
        "alice/find-0",
    ]
    assert [m.id for m in api.list_models(search="find", sort="created_at", limit=2)] == [
        "alice/find-4",
        "alice/find-3",
    ]
    assert [
        m.id for m in api.list_models(pipeline_tag="text-to-image", search="find-0", full=True, cardData=True)
    ] == ["alice/find-0"]
    assert not list(api.list_models(author="bob"))
    assert not list(api.list_models(filter="no-such-tag"))


def hides_moves_and_deletes() -> None:
    api.create_repo("secret", private=True)
    api.upload_file(path_or_fileobj=b"s", path_in_repo="s", repo_id="alice/secret")
    assert api.model_info("alice/secret").private
    for token in (False, BOB):
        for ask in (
            lambda token=token: api.model_info("alice/secret", token=token),
            lambda token=token: api.hf_hub_download("alice/secret", "s", token=token),
        ):
            with pytest.raises(RepositoryNotFoundError) as hidden:
                ask()
            assert hidden.value.response.status_code == 404
    api.update_repo_settings("alice/secret", private=False)
    assert api.model_info("alice/secret", token=False).private is False
    with pytest.raises(HfHubHTTPError) as caught:
        api.upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id="alice/secret", token=BOB)
    assert caught.value.response.status_code == 403
    api.move_repo("alice/secret", "alice/Shown")
    assert api.repo_exists("alice/Shown")
    assert not api.repo_exists("alice/secret")
    api.delete_repo("alice/shown")
    assert not api.repo_exists("alice/Shown")
    api.delete_repo("alice/shown", missing_ok=True)
    with pytest.raises(RepositoryNotFoundError):
        api.delete_repo("alice/shown")


def is_told_what_is_wrong() -> None:
    api.create_repo("faults")
    with pytest.raises((HfHubHTTPError, OSError)) as refused:  # 0.x raises what requests does, an OSError
        api.whoami(token="hf_wrong")
    answer: Any = refused.value.response  # type: ignore[attr-defined]
    assert (answer.status_code, answer.headers["X-Error-Code"]) == (401, "AccessError")
    bad_card = [CommitOperationAdd("README.md", b"---\nbase_model: [unclosed\n---\n")]
    with pytest.raises(ValueError, match=r"YAML header of README\.md"):
        api.create_commit("alice/faults", bad_card, commit_message="x")
    for path in (
        "nul.txt",
        "a\\b",
        "C:x",
        "dir./x",
        "\x01",
        "Readme.md/../x".replace("/../", "/..x/") + ":s",
    ):
        with pytest.raises(BadRequestError) as caught:
            api.upload_file(path_or_fileobj=b"x", path_in_repo=path, repo_id="alice/faults")
        assert "is not allowed" in str(caught.value)
    api.upload_file(path_or_fileobj=b"x", path_in_repo="Name.txt", repo_id="alice/faults")
    with pytest.raises(BadRequestError) as caught:
        api.upload_file(path_or_fileobj=b"y", path_in_repo="name.TXT", repo_id="alice/faults")
    assert "the same file on some systems" in str(caught.value)
    with pytest.raises(BadRequestError) as caught:
        api.create_commit("alice/faults", [CommitOperationAdd("x", b"")], commit_message="x", create_pr=True)
    assert "no pull requests" in str(caught.value)


def keeps_datasets_and_spaces_apart() -> None:
    api.create_repo("things", repo_type="dataset")
    api.create_repo("things", repo_type="space", space_sdk="static")
    api.upload_file(
        path_or_fileobj=NOISE[:1000], path_in_repo="d.bin", repo_id="alice/things", repo_type="dataset"
    )
    assert api.dataset_info("alice/things").siblings is not None
    assert [dataset.id for dataset in api.list_datasets(author="alice")] == ["alice/things"]
    path = api.hf_hub_download("alice/things", "d.bin", repo_type="dataset")
    assert Path(path).read_bytes() == NOISE[:1000]
    assert not api.repo_exists("alice/things")
    api.delete_repo("alice/things", repo_type="space")
    assert api.repo_exists("alice/things", repo_type="dataset")


def ignores_what_gitignore_says() -> None:
    api.create_repo("ignore")
    folder = Path("ignore")
    folder.mkdir()
    (folder / ".gitignore").write_text("*.log\n")
    (folder / "run.log").write_text("noise")
    (folder / "kept.txt").write_text("kept")
    api.upload_folder(repo_id="alice/ignore", folder_path=folder)
    assert api.list_repo_files("alice/ignore") == [".gitattributes", ".gitignore", "kept.txt"]


def sends_large_files_without_xet() -> None:
    from huggingface_hub import constants

    constants.HF_HUB_DISABLE_XET = True
    api.create_repo("plain")
    for _ in range(2):  # the second time the registry has it already
        api.upload_file(path_or_fileobj=LARGE, path_in_repo="w.safetensors", repo_id="alice/plain")
        api.delete_file("w.safetensors", "alice/plain")
    api.upload_file(path_or_fileobj=LARGE, path_in_repo="w.safetensors", repo_id="alice/plain")
    assert Path(api.hf_hub_download("alice/plain", "w.safetensors")).read_bytes() == LARGE


def sends_large_files_in_parts() -> None:
    """Against a registry with small parts."""
    from huggingface_hub import constants

    constants.HF_HUB_DISABLE_XET = True
    api.create_repo("parts")
    for name, data in (("uneven.bin", LARGE), ("even.bin", LARGE[: 6 * 2**20]), ("small.bin", b"\0small")):
        api.upload_file(path_or_fileobj=data, path_in_repo=name, repo_id="alice/parts")
        assert Path(api.hf_hub_download("alice/parts", name)).read_bytes() == data


def makes_histories_smaller() -> None:
    api.create_repo("long")
    first = api.upload_file(path_or_fileobj=NOISE, path_in_repo="a.bin", repo_id="alice/long")
    api.upload_file(path_or_fileobj=NOISE[:-1], path_in_repo="a.bin", repo_id="alice/long")
    api.create_tag("alice/long", tag="v1", revision=first.oid)
    api.upload_file(path_or_fileobj=b"kept", path_in_repo="b.txt", repo_id="alice/long")
    large = {file.file_oid: file for file in api.list_lfs_files("alice/long")}
    assert sorted(file.size for file in large.values()) == [len(NOISE) - 1, len(NOISE)]
    assert {file.filename for file in large.values()} == {"a.bin"}
    api.permanently_delete_lfs_files("alice/long", [f for f in large.values() if f.size == len(NOISE)])
    assert [file.size for file in api.list_lfs_files("alice/long")] == [len(NOISE) - 1]
    assert len(list(api.list_repo_commits("alice/long"))) == 4
    assert api.list_repo_files("alice/long", revision="v1") == [".gitattributes"]
    with pytest.raises(RevisionNotFoundError):
        api.model_info("alice/long", revision=first.oid)
    for entry in api.list_repo_tree("alice/long", expand=True):
        assert entry.last_commit is not None
    before = api.list_repo_files("alice/long")
    api.super_squash_history("alice/long", commit_message="one")
    assert [commit.title for commit in api.list_repo_commits("alice/long")] == ["one"]
    assert api.list_repo_files("alice/long") == before == [".gitattributes", "a.bin", "b.txt"]
    with pytest.raises(RevisionNotFoundError):
        api.super_squash_history("alice/long", branch="gone")


def duplicates_and_counts() -> None:
    api.create_repo("first", private=True)
    change = [CommitOperationAdd("README.md", CARD.encode()), CommitOperationAdd("w.bin", NOISE)]
    head = api.create_commit("alice/first", change, commit_message="add")
    api.create_tag("alice/first", tag="v1")
    assert api.duplicate_repo("alice/first", "alice/second").repo_id == "alice/second"
    second = api.model_info("alice/second")
    assert (second.sha, second.private, second.pipeline_tag) == (head.oid, True, "text-to-image")
    assert [tag.name for tag in api.list_repo_refs("alice/second").tags] == ["v1"]
    api.delete_repo("alice/first")
    assert Path(api.hf_hub_download("alice/second", "w.bin", revision="v1")).read_bytes() == NOISE
    with pytest.raises(HfHubHTTPError) as caught:
        api.duplicate_repo("alice/second", "bob/third")
    assert caught.value.response.status_code == 403
    with pytest.raises(HfHubHTTPError) as caught:
        api.duplicate_repo("alice/second", "alice/second")
    assert caught.value.response.status_code == 409
    kept = {repo.id: repo for repo in api.list_user_repos()}
    assert len(NOISE) < kept["alice/second"].storage < len(NOISE) + 10_000
    assert kept["alice/second"].visibility == "private"
    with pytest.raises(HfHubHTTPError):
        list(api.list_user_repos("bob"))


def refers_to_chunks_it_sent_before() -> None:
    """Played twice: the client's home has a list of what it sent, and its second upload relies on it."""
    repo_id = api.create_repo("again", exist_ok=True).repo_id
    data = LARGE + str(time.time_ns()).encode()
    api.upload_file(path_or_fileobj=data, path_in_repo="w.bin", repo_id=repo_id)
    path = api.hf_hub_download(repo_id, "w.bin")
    assert Path(path).read_bytes() == data


def follows_pages() -> None:
    """Pages are smaller here than the library asks for, so it has to follow the links."""
    api.create_repo("pages")
    change = [CommitOperationAdd(f"f{number}", b"") for number in range(7)]
    api.create_commit("alice/pages", change, commit_message="many")
    url: str | None = f"{api.endpoint}/api/models/alice/pages/tree/main?limit=3"
    paths = []
    while url:
        answer = httpx.get(url, trust_env=False)
        paths += [entry["path"] for entry in answer.json()]
        url = answer.links.get("next", {}).get("url")
    assert paths == [".gitattributes", *(f"f{number}" for number in range(7))]


if __name__ == "__main__":
    BOB = sys.argv[2]
    globals()[sys.argv[1]]()
