"""search, and remove with its undo: as typed, against a real registry."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

from hubctl.hub.find import matching, ranked
from hubctl.hub.records import AdapterSummary
from tests.cli import run_cli

if TYPE_CHECKING:
    from tests.registry_server import RegistryServer

_numbers = itertools.count()


@pytest.fixture
def user(registry: RegistryServer) -> str:
    name = f"finder{next(_numbers)}"
    added = run_cli(
        "remote", "add", "local", registry.endpoint, "--use", "--token-stdin", stdin=registry.token(name)
    )
    assert added.code == 0, added.err
    return name


@pytest.fixture
def names(registry: RegistryServer, user: str) -> dict[str, str]:
    """Three repositories with cards: by short name, their ids."""
    from huggingface_hub import HfApi

    api = HfApi(registry.endpoint, token=registry.token(user))
    cards = {
        "zebra-lines": "tags: [lora, stripes]\ninstance_prompt: zwx",
        "dots": "tags: [lora, Zebra-Lines]\ninstance_prompt: qqq",
        "plain": "tags: [lora]",
    }
    for name, data in cards.items():
        repo = api.create_repo(name).repo_id
        card = f"---\nbase_model: {user}/base\n{data}\n---\n"
        api.upload_file(repo_id=repo, path_or_fileobj=card.encode(), path_in_repo="README.md")
    return {name: f"{user}/{name}" for name in cards}


def test_search(user: str, names: dict[str, str]) -> None:
    def found(*words: str) -> list[str]:
        return run_cli("search", *words, "--base", f"{user}/base", "-q").out.split()

    assert found("zebra") == [names["zebra-lines"]]
    assert found("zebra-lines") == [names["zebra-lines"]], "tags are asked for as they are spelled"
    assert found("Zebra-Lines", "lora") == [names["zebra-lines"], names["dots"]], "names come first"
    assert found("Zebra-Lines qqq") == [names["dots"]]
    assert found("lora", "zwx") == [names["zebra-lines"]]
    assert found("stripes", "a-long-word-of-no-adapter") == []
    assert found("stripes", f"{user}/base") == [names["zebra-lines"]], "a word of the base"
    assert set(found("lora")) == set(names.values())
    assert found("lora", "nowhere") == []
    (row,) = run_cli("search", "stripes", "--base", f"{user}/base", "--json").json()
    assert (row["id"], row["trigger"]) == (names["zebra-lines"], "zwx")
    assert "nothing on local" in run_cli("search", "no-such-adapter-at-all").err
    assert run_cli("search", " ").code == 2


def summary(repo_id: str, *tags: str, trigger: str | None = None) -> AdapterSummary:
    return AdapterSummary(
        repo_id=repo_id, base_model="o/base", task=None, trigger=trigger, updated=None, size_bytes=None,
        commit=None, private=False, tags=tags,
    )  # fmt: skip


def test_words_are_looked_for_everywhere_and_names_come_first() -> None:
    tagged, named, other = summary("a/x", "Cat"), summary("a/cat"), summary("a/y", trigger="a photo of zwx")
    assert list(matching(["cat"], [tagged, named, other])) == [tagged, named]
    assert list(matching(["zwx", "base"], [tagged, named, other])) == [other]
    assert ranked(["cat"], [tagged, named]) == [named, tagged]
    assert ranked(["a/"], [tagged, named, other]) == [tagged, named, other]


def test_what_was_removed_comes_back(names: dict[str, str]) -> None:
    repo = names["dots"]
    before = run_cli("show", repo, "--json").json()
    planned = run_cli("remove", repo, "--dry-run")
    assert f"{repo} would go: 2 files" in planned.out
    assert run_cli("show", repo).code == 0
    assert f"hubctl remove {repo} --undo brings it back" in run_cli("remove", repo, "-y").err
    assert run_cli("show", repo).code == 3
    listed = run_cli("list", "--removed")
    assert repo in listed.out
    assert f"hubctl remove {repo} --undo" in listed.err
    assert run_cli("remove", repo, "--undo", "-q").out == f"{repo}\n"
    assert {**run_cli("show", repo, "--json").json(), "updated": ""} == {**before, "updated": ""}
    gone = run_cli("remove", repo, "--undo")
    assert gone.code == 3
    assert "keeps no removed" in gone.err
    assert run_cli("list", "--removed", "-q").out == ""


def test_a_name_that_was_taken_meanwhile(registry: RegistryServer, names: dict[str, str]) -> None:
    from huggingface_hub import HfApi

    repo = names["plain"]
    assert run_cli("remove", repo, "-y").code == 0
    HfApi(registry.endpoint, token=registry.token(repo.partition("/")[0])).create_repo(repo)
    taken = run_cli("remove", repo, "--undo")
    assert taken.code == 7
    assert f"hubctl move {repo} {repo}-2" in taken.err
    assert run_cli("move", repo, f"{repo}-2").code == 0
    assert run_cli("remove", repo, "--undo").code == 0
