"""What is taken from a repository, and what is not: pure decisions, no network."""

from __future__ import annotations

from pathlib import Path

import pytest

from hubctl.adapter.card import first_base_model
from hubctl.errors import AdapterError, IntegrityError
from hubctl.hub.pull import adapter_files, base_files, commit_folder
from hubctl.hub.records import AdapterInfo, Digest, FileInfo, RepoInfo, pick_weights
from hubctl.refs import PinnedRef

COMMIT = "0123456789abcdef0123456789abcdef01234567"
WEIGHTS = "pytorch_lora_weights.safetensors"


def repo(*names: str) -> RepoInfo:
    return RepoInfo(
        repo_id="alice/x",
        revision="main",
        commit=COMMIT,
        files={name: FileInfo(size_bytes=3, sha256="0" * 64, git_sha1=None) for name in names},
        card={},
        task=None,
        tags=(),
        private=False,
        updated=None,
    )


def adapter(*names: str) -> AdapterInfo:
    info = repo(*names)
    values = {name: getattr(info, name) for name in RepoInfo.__dataclass_fields__}
    pinned = PinnedRef("alice/x", "main", COMMIT, "0" * 64)
    return AdapterInfo(**values, weights_file=pick_weights(info), pinned=pinned)


def test_only_plain_files_of_an_adapter_are_taken() -> None:
    taken = adapter_files(adapter(
        WEIGHTS, "README.md", "hubctl.json", "image_0.png", "samples/a.webp", "LICENSE",
        ".gitattributes", "optimizer.bin", "run.py", "training_args.pt", "events.out.tfevents.1",
    ))  # fmt: skip
    assert taken == ["LICENSE", "README.md", "hubctl.json", "image_0.png", WEIGHTS, "samples/a.webp"]


def test_checkpoints_beside_the_weights_stay_there() -> None:
    assert adapter_files(adapter(WEIGHTS, "checkpoint-500/model.safetensors")) == [WEIGHTS]


def test_a_repository_with_a_hostile_name_is_refused_whole() -> None:
    with pytest.raises(AdapterError, match="alice/x is refused: path"):
        adapter_files(adapter(WEIGHTS, "../../.bashrc.txt"))


def test_more_bytes_than_any_adapter_has_are_not_fetched() -> None:
    info = adapter(WEIGHTS)
    info.files[WEIGHTS] = FileInfo(size_bytes=5 << 30, sha256="0" * 64, git_sha1=None)
    with pytest.raises(AdapterError, match="limit"):
        adapter_files(info)


def test_names_that_one_disk_would_merge_are_refused() -> None:
    with pytest.raises(AdapterError, match="the same file on some systems"):
        adapter_files(adapter(WEIGHTS, "readme.md", "README.md"))


def test_pickles_alone_are_no_adapter() -> None:
    with pytest.raises(AdapterError, match="no safetensors weights") as caught:
        pick_weights(repo("pytorch_lora_weights.bin"))
    assert "pickles are never taken" in str(caught.value.hint)


def test_several_weights_under_other_names_are_ambiguous() -> None:
    assert pick_weights(repo("style.safetensors")) == "style.safetensors"
    with pytest.raises(AdapterError, match="several safetensors weights"):
        pick_weights(repo("a.safetensors", "b.safetensors"))


def test_a_base_is_no_adapter() -> None:
    with pytest.raises(AdapterError, match="is a base model"):
        pick_weights(repo("model_index.json", "unet/x.safetensors"))


def test_a_base_without_its_duplicates() -> None:
    unet, half = "unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors"
    lone = "vae/diffusion_pytorch_model.fp16.safetensors"
    taken = base_files(repo(
        "model_index.json", unet, half, lone, "v1-5-pruned.safetensors", "unet/diffusion_pytorch_model.bin",
        "tokenizer/merges.txt", "unet/config.json", "feature.onnx",
    ))  # fmt: skip
    assert taken == ["model_index.json", "tokenizer/merges.txt", "unet/config.json", unet, lone]


def test_a_whole_model_keeps_its_weights_at_the_root() -> None:
    names = ["config.json", "model.safetensors", "preprocessor_config.json"]
    assert base_files(repo(*names, "pytorch_model.bin")) == names


def test_a_base_in_pickles_is_refused() -> None:
    with pytest.raises(AdapterError, match="no safetensors weights, only pickles"):
        base_files(repo("config.json", "pytorch_model.bin"))


@pytest.mark.parametrize("commit", ["main", "../../x", "ABC", COMMIT.upper(), COMMIT + "0", ""])
def test_a_commit_becomes_a_path_only_if_it_is_one(commit: str) -> None:
    with pytest.raises(IntegrityError):
        commit_folder(Path("/cache"), "alice/x", commit)
    assert commit_folder(Path("/cache"), "alice/x", COMMIT) == Path("/cache/alice/x") / COMMIT


def test_hashes_as_registries_state_them() -> None:
    # sha256sum and `git hash-object` of the five bytes "hello".
    sha256 = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
    git_sha1 = "b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0"
    for promised in (
        FileInfo(size_bytes=5, sha256=sha256, git_sha1=None),
        FileInfo(size_bytes=5, sha256=None, git_sha1=git_sha1),
    ):
        good, bad, short = (Digest(promised, "f") for _ in range(3))
        good.update(b"hel")
        good.update(b"lo")
        good.check("alice/x")
        bad.update(b"hellO")
        with pytest.raises(IntegrityError, match="f of alice/x is not what the registry promised"):
            bad.check("alice/x")
        short.update(b"hell")
        with pytest.raises(IntegrityError, match="arrived with 4 bytes, not 5"):
            short.check("alice/x")
    with pytest.raises(IntegrityError, match="states no hash"):
        Digest(FileInfo(size_bytes=5, sha256=None, git_sha1=None), "f")


@pytest.mark.parametrize(
    ("card", "base"),
    [
        ({}, None), ({"base_model": ""}, None), ({"base_model": []}, None), ({"base_model": 3}, None),
        ({"base_model": "a/b"}, "a/b"), ({"base_model": ["a/b", "c/d"]}, "a/b"),
    ],
)  # fmt: skip
def test_the_base_that_a_card_names(card: dict[str, object], base: str | None) -> None:
    assert first_base_model(card) == base
