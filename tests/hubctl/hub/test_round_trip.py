"""Push and pull against a real registry: what goes up comes down, and nothing else ever does."""

from __future__ import annotations

import itertools
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hubctl.adapter.base_shapes import read_base_shapes
from hubctl.base_models import embedded_bases, locate_base
from hubctl.errors import (
    AccessError,
    AdapterError,
    ConflictError,
    InputError,
    IntegrityError,
    NotFoundError,
)
from hubctl.hub.client import Hub
from hubctl.hub.find import list_adapters
from hubctl.hub.headers import remote_layout
from hubctl.hub.pull import pull, pull_base
from hubctl.hub.push import compare, default_repo_id, push
from hubctl.refs import AdapterRef, PinnedRef
from tests.adapters import UNET, contents, put_nan, write_adapter, write_base, write_tensors

if TYPE_CHECKING:
    from tests.registry_server import RegistryServer

WEIGHTS = "pytorch_lora_weights.safetensors"
_numbers = itertools.count()


@pytest.fixture
def user(registry: RegistryServer) -> str:
    return f"user{next(_numbers)}"


@pytest.fixture
def hub(registry: RegistryServer, user: str, tmp_path: Path) -> Hub:
    return Hub(registry.endpoint, registry.token(user), "local")


@pytest.fixture
def base(hub: Hub, user: str, tmp_path: Path) -> str:
    """A base model on the registry; adapters of these tests are for it."""
    return push(hub, write_base(tmp_path / "base"), f"{user}/base", kind="base").repo_id


def test_what_is_pushed_is_what_is_pulled(hub: Hub, base: str, user: str, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "line-art", base)
    (folder / "samples").mkdir()
    (folder / "samples/image_0.png").write_bytes(bytes(range(256)) * 50)
    (folder / ".DS_Store").write_bytes(b"stays here")
    pushed = push(hub, folder)
    assert (pushed.repo_id, pushed.unchanged) == (f"{user}/line-art", False)
    assert pushed.url == f"{hub.endpoint}/{user}/line-art"

    seen: list[tuple[int, int]] = []
    pulled = pull(
        hub,
        AdapterRef.parse(f"{user}/line-art"),
        cache=tmp_path / "cache",
        progress=lambda *n: seen.append(n),
    )
    (folder / ".DS_Store").unlink()
    assert contents(pulled.path) == contents(folder)
    assert pulled.pinned.commit == pushed.commit
    assert pulled.path == tmp_path / "cache/adapters" / user / "line-art" / pushed.commit
    assert len(pulled.layout.modules) == 3
    assert not pulled.cached
    assert seen[-1] == (seen[-1][1], sum(map(len, contents(folder).values())))


def test_words_of_its_own_go_along_and_must_fit_too(hub: Hub, user: str, tmp_path: Path) -> None:
    folder = write_base(tmp_path / "base")
    write_tensors(
        folder / "text_encoder/model.safetensors",
        {"text_model.embeddings.token_embedding.weight": (50, 16)},
    )
    base = push(hub, folder, f"{user}/base", kind="base").repo_id
    adapter = write_adapter(tmp_path / "words", base)
    write_tensors(adapter / "words_emb.safetensors", {"clip_l": (2, 24)})
    with pytest.raises(AdapterError, match="24 numbers for 'text_encoder', where the base has 16"):
        push(hub, adapter)
    write_tensors(adapter / "words_emb.safetensors", {"clip_l": (2, 16)})
    push(hub, adapter)
    pulled = pull(hub, AdapterRef.parse(f"{user}/words"), cache=tmp_path / "cache")
    assert contents(pulled.path) == contents(adapter)
    assert pulled.layout.tokens is not None
    assert pulled.layout.tokens.names == ("<s0>", "<s1>")
    remote = remote_layout(hub, hub.adapter_info(AdapterRef.parse(f"{user}/words")))
    assert remote.tokens is not None
    assert remote.tokens.widths == {"text_encoder": 16}


def test_the_base_is_pulled_whole(hub: Hub, base: str, tmp_path: Path) -> None:
    path, commit = pull_base(hub, AdapterRef.parse(base), cache=tmp_path / "cache")
    assert contents(path) == contents(tmp_path / "base")
    assert path == tmp_path / "cache/bases" / base / commit
    assert pull_base(hub, AdapterRef.parse(base), cache=tmp_path / "cache") == (path, commit)


def test_pushing_the_same_again_makes_no_commit(hub: Hub, base: str, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", base)
    first, again = push(hub, folder), push(hub, folder)
    assert again.unchanged
    assert again.commit == first.commit


def test_a_push_replaces_what_was_there(hub: Hub, base: str, user: str, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", base)
    (folder / "image_0.png").write_bytes(b"old")
    first = push(hub, folder)
    (folder / "image_0.png").unlink()
    write_adapter(folder, base, seed=2)
    second = push(hub, folder)
    assert second.commit != first.commit
    now = hub.repo_info(AdapterRef(f"{user}/a"))
    assert "image_0.png" not in now.files
    # The commit before is still what it was.
    old = pull(hub, AdapterRef(f"{user}/a", first.commit), cache=tmp_path / "cache")
    assert (old.path / "image_0.png").read_bytes() == b"old"
    assert old.pinned.sha256 != hub.adapter_info(AdapterRef(f"{user}/a")).pinned.sha256


def test_info_names_base_task_and_weights(hub: Hub, base: str, user: str, tmp_path: Path) -> None:
    pushed = push(hub, write_adapter(tmp_path / "a", base))
    info = hub.adapter_info(AdapterRef(f"{user}/a"))
    assert (info.base_model, info.task, info.weights_file) == (base, "text-to-image", WEIGHTS)
    assert info.pinned == PinnedRef(f"{user}/a", "main", pushed.commit, str(info.files[WEIGHTS].sha256))


def test_listing(hub: Hub, base: str, user: str, tmp_path: Path) -> None:
    push(hub, write_adapter(tmp_path / "one", base))
    push(hub, write_adapter(tmp_path / "two", base))
    assert [one.repo_id for one in list_adapters(hub, author=user)] == [f"{user}/two", f"{user}/one"]
    assert [one.repo_id for one in list_adapters(hub, "one", author=user)] == [f"{user}/one"]
    assert [one.repo_id for one in list_adapters(hub, base_model=base, limit=1)] == [f"{user}/two"]
    assert list_adapters(hub, base_model="some/other") == []
    assert base in [one.repo_id for one in list_adapters(hub, author=user, everything=True)]


@pytest.mark.parametrize("name", sorted(embedded_bases()))
def test_adapters_for_the_embedded_bases(hub: Hub, user: str, tmp_path: Path, name: str) -> None:
    """The registry has never heard of these bases, and need not."""
    base = locate_base(f"hubctl/{name}")
    component = base.family.denoiser
    shapes = read_base_shapes(base.path, base.family)[component]
    layers = [
        key.removesuffix(".weight")
        for key, shape in shapes.items()
        if key.endswith(".weight") and len(shape) == 2
    ]
    diffusers = base.family.task == "text-to-image"
    prefix = f"{component}." if diffusers else "base_model.model."
    pairs: dict[str, tuple[int, ...]] = {}
    for layer in layers[:3]:
        out, inside = shapes[f"{layer}.weight"]
        pairs |= {f"{prefix}{layer}.lora_A.weight": (2, inside), f"{prefix}{layer}.lora_B.weight": (out, 2)}
    folder = tmp_path / f"for-{name}"
    write_tensors(folder / (WEIGHTS if diffusers else "adapter_model.safetensors"), pairs)
    (folder / "README.md").write_text(f"---\nbase_model: hubctl/{name}\n---\n")
    if not diffusers:
        (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 2}')
    pulled = pull(hub, AdapterRef(push(hub, folder).repo_id), cache=tmp_path / "cache")
    assert contents(pulled.path) == contents(folder)
    assert len(pulled.layout.modules) == 3


# -- refused, with the reason; nothing reaches the registry


def refused(hub: Hub, folder: Path, user: str) -> str:
    """Push `folder`, see it refused, and see that no repository was made; the message."""
    with pytest.raises((AdapterError, NotFoundError, InputError)) as caught:
        push(hub, folder)
    with pytest.raises(NotFoundError):
        hub.repo_info(AdapterRef(f"{user}/{folder.name}"))
    return f"{type(caught.value).__name__}: {caught.value.message} ({caught.value.hint})"


@pytest.mark.parametrize("name", ["optimizer.bin", "old/weights.PT", "scheduler.pkl"])
def test_pickles_are_refused(hub: Hub, base: str, user: str, tmp_path: Path, name: str) -> None:
    folder = write_adapter(tmp_path / "a", base)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"\x80\x04.")
    said = refused(hub, folder, user)
    assert f"AdapterError: {Path(name).name} is a pickle" in said
    assert "remove this file" in said


def test_nan_is_refused(hub: Hub, base: str, user: str, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", base)
    put_nan(folder / WEIGHTS)
    said = refused(hub, folder, user)
    assert "1 of 6 tensors hold NaN or infinity" in said
    assert "lower learning rate" in said


def test_a_shape_that_does_not_fit_is_refused(hub: Hub, base: str, user: str, tmp_path: Path) -> None:
    key = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    folder = write_adapter(tmp_path / "a", base, unet={**UNET, f"{key}.weight": (8, 24)})
    said = refused(hub, folder, user)
    assert said.startswith("AdapterMismatchError:")
    assert f"does not fit {base} (2 of 3 parts fit)" in said
    assert f"'unet.{key}' is 8x16 in the base, the adapter was made for 8x24" in said


def test_a_layer_that_the_base_lacks_is_refused(hub: Hub, user: str, tmp_path: Path) -> None:
    fewer = {name: shape for name, shape in UNET.items() if "to_v" not in name}
    other = push(hub, write_base(tmp_path / "other", fewer), kind="base").repo_id
    said = refused(hub, write_adapter(tmp_path / "a", other), user)
    assert "the base has no layer 'unet.down_blocks.0" in said


def test_a_card_without_base_model_is_refused(hub: Hub, base: str, user: str, tmp_path: Path) -> None:
    said = refused(hub, write_adapter(tmp_path / "a", base, card=False), user)
    assert "(README.md) does not say which base_model" in said
    assert f"add the line `base_model: {base}`" in said


def test_a_base_that_is_nowhere_is_refused(hub: Hub, user: str, tmp_path: Path) -> None:
    said = refused(hub, write_adapter(tmp_path / "a", f"{user}/nowhere"), user)
    assert said.startswith(f"NotFoundError: no base model '{user}/nowhere'")


def test_a_link_out_of_the_folder_is_refused(hub: Hub, base: str, user: str, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", base)
    (tmp_path / "secret.txt").write_text("not yours")
    (folder / "notes.txt").symlink_to(tmp_path / "secret.txt")
    assert "notes.txt is a symbolic link" in refused(hub, folder, user)


def test_a_pipe_is_not_waited_for(hub: Hub, base: str, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", base)
    os.mkfifo(folder / "notes.txt")
    with pytest.raises(InputError, match=r"notes\.txt is a pipe"):
        push(hub, folder)


def test_a_base_folder_of_an_unknown_kind_is_refused(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": ["BertModel"]}')
    with pytest.raises(InputError, match="holds BertModel, which hubctl does not run"):
        push(hub, folder, kind="base")


def test_a_local_folder_can_be_the_base(hub: Hub, tmp_path: Path) -> None:
    local = write_base(tmp_path / "local-base")
    compared = compare(write_adapter(tmp_path / "a", "some/where"), lambda: hub, str(local))
    assert compared.fit.fits


# -- whose registry it is


def test_without_a_token(registry: RegistryServer, base: str, tmp_path: Path) -> None:
    nobody = Hub(registry.endpoint, None, "local")
    folder = write_adapter(tmp_path / "a", base)
    for call in (lambda: push(nobody, folder), nobody.whoami, lambda: nobody.delete("x/y")):
        with pytest.raises(AccessError, match="no token for local") as caught:
            call()
        assert caught.value.hint == "hubctl login --remote local"


def test_with_a_wrong_token(registry: RegistryServer, base: str, tmp_path: Path) -> None:
    wrong = Hub(registry.endpoint, "hubctl_not-a-real-token", "local")
    with pytest.raises(AccessError, match="refuses the token") as caught:
        push(wrong, write_adapter(tmp_path / "a", base), "someone/a")
    assert not caught.value.forbidden
    assert "not-a-real-token" not in f"{caught.value}{caught.value.hint}"
    with pytest.raises(AccessError, match="refuses the token"):
        wrong.whoami()


def test_other_peoples_repositories(hub: Hub, base: str, registry: RegistryServer, tmp_path: Path) -> None:
    other = Hub(registry.endpoint, registry.token("mallory"), "local")
    push(hub, write_adapter(tmp_path / "a", base))
    for call in (lambda: push(other, tmp_path / "a", base), lambda: other.delete(base)):
        with pytest.raises(AccessError, match="forbids this") as caught:
            call()
        assert caught.value.forbidden


def test_private_repositories(
    hub: Hub, base: str, user: str, registry: RegistryServer, tmp_path: Path
) -> None:
    push(hub, write_adapter(tmp_path / "a", base), private=True)
    assert hub.repo_info(AdapterRef(f"{user}/a")).private
    stranger = Hub(registry.endpoint, None, "local")
    with pytest.raises(NotFoundError, match=f"no repository {user}/a") as caught:
        stranger.repo_info(AdapterRef(f"{user}/a"))
    assert "if it is private, hubctl login --remote local" in str(caught.value.hint)
    with pytest.raises(ConflictError, match="exists already and is public"):
        push(hub, tmp_path / "a", base, private=True)


def test_missing_things(hub: Hub, base: str, user: str, tmp_path: Path) -> None:
    push(hub, write_adapter(tmp_path / "a", base))
    with pytest.raises(NotFoundError, match=f"no repository {user}/b"):
        pull(hub, AdapterRef(f"{user}/b"), cache=tmp_path / "cache")
    with pytest.raises(NotFoundError, match="no such revision"):
        pull(hub, AdapterRef(f"{user}/a", "nope"), cache=tmp_path / "cache")
    with pytest.raises(NotFoundError):
        hub.delete(f"{user}/b")
    with pytest.raises(AdapterError, match="is a base model"):
        pull(hub, AdapterRef.parse(base), cache=tmp_path / "cache")
    hub.delete(f"{user}/a")
    with pytest.raises(NotFoundError):
        hub.repo_info(AdapterRef(f"{user}/a"))


# -- the cache


def test_a_pinned_adapter_in_the_cache_needs_no_registry(
    hub: Hub, base: str, user: str, tmp_path: Path
) -> None:
    push(hub, write_adapter(tmp_path / "a", base))
    pulled = pull(hub, AdapterRef(f"{user}/a"), cache=tmp_path / "cache")
    dead = Hub("http://127.0.0.1:9", None, "dead")
    again = pull(dead, pulled.pinned, cache=tmp_path / "cache")
    assert again.cached
    assert again.path == pulled.path


def test_damage_in_the_cache_is_noticed_and_mended(hub: Hub, base: str, user: str, tmp_path: Path) -> None:
    push(hub, write_adapter(tmp_path / "a", base))
    pulled = pull(hub, AdapterRef(f"{user}/a"), cache=tmp_path / "cache")
    weights = pulled.path / WEIGHTS
    sound = weights.read_bytes()
    weights.write_bytes(sound[:-4] + b"\x00\x00\x80\x3f")
    again = pull(hub, pulled.pinned, cache=tmp_path / "cache")
    assert not again.cached
    assert weights.read_bytes() == sound


def test_what_a_killed_download_left_is_cleared(hub: Hub, base: str, user: str, tmp_path: Path) -> None:
    commit = push(hub, write_adapter(tmp_path / "a", base)).commit
    left = tmp_path / f"cache/adapters/{user}/a/.{commit}-x1y2z3"
    left.mkdir(parents=True)
    (left / WEIGHTS).write_bytes(b"half")
    pull(hub, AdapterRef(f"{user}/a"), cache=tmp_path / "cache")
    assert not left.exists()


def test_a_pin_with_another_hash_is_refused(hub: Hub, base: str, user: str, tmp_path: Path) -> None:
    pushed = push(hub, write_adapter(tmp_path / "a", base))
    pin = PinnedRef(f"{user}/a", "main", pushed.commit, "f" * 64)
    with pytest.raises(IntegrityError, match="has other weights"):
        pull(hub, pin, cache=tmp_path / "cache")


def test_many_at_once_download_once(hub: Hub, base: str, user: str, tmp_path: Path) -> None:
    push(hub, write_adapter(tmp_path / "a", base))
    ref, results = AdapterRef(f"{user}/a"), []
    threads = [
        threading.Thread(target=lambda: results.append(pull(hub, ref, cache=tmp_path / "cache")))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(result.cached for result in results) == [False, True, True, True]
    assert len({result.path for result in results}) == 1


@pytest.mark.parametrize("name", [WEIGHTS, "hubctl.json"])
def test_tampered_bytes_are_refused_and_not_kept(
    hub: Hub, base: str, user: str, registry: RegistryServer, tmp_path: Path, name: str
) -> None:
    # Content that no other test has: the registry stores equal files once.
    folder = write_adapter(tmp_path / "a", base, seed=next(_numbers) + 1000)
    manifest = (folder / "hubctl.json").read_text()
    (folder / "hubctl.json").write_text(manifest.replace("{}", f'{{"run": "{user} {name}"}}', 1))
    push(hub, folder)
    sound = (folder / name).read_bytes()
    stored = [p for p in registry.root.rglob("*") if p.is_file() and p.read_bytes() == sound]
    assert stored, "the registry keeps the file as it is"
    for path in stored:
        path.chmod(0o644)
        path.write_bytes(sound[:-2] + bytes([sound[-2] ^ 1]) + sound[-1:])
    with pytest.raises(IntegrityError, match=f"{name} of {user}/a@.* is not what the registry promised"):
        pull(hub, AdapterRef(f"{user}/a"), cache=tmp_path / "cache")
    left = [p for p in (tmp_path / "cache/adapters").rglob("*") if p.is_file()]
    assert [p.suffix for p in left] == [".lock"]


@pytest.mark.parametrize(
    ("folder", "repo_id"),
    [
        ("line-art", "al/line-art"),
        ("Meine Katze!", "al/Meine-Katze"),
        ("a--b..c", "al/a-b.c"),
        ("v1.0", "al/v1.0"),
    ],
)
def test_the_default_name(folder: str, repo_id: str, tmp_path: Path) -> None:
    assert default_repo_id("al", tmp_path / folder) == repo_id


def test_a_folder_without_a_usable_name(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        default_repo_id("al", tmp_path / "猫")
    assert caught.value.hint == "add --repo OWNER/NAME"
