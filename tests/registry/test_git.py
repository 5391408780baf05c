"""Ids are the ones git computes: these were made with git itself."""

from __future__ import annotations

from hubctl.registry import git
from hubctl.registry.commits import GITATTRIBUTES

EMPTY_TREE = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"
TREES = {
    "": "15d212986fc63f3514b265b3b703a122e6c2ffa1",
    "a": "b898aae332c95d25140cd8c8eda1e113b4c8ef16",
    "a/b": "2bcada35da78a7011b5497fcf851bb11e2353a39",
}
COMMITS = ("2743d7abd405f5f6469bcb5e1298dbbe6d4f20c2", "85fba82b2cb5a668c06b1bcdc550dbc967e6523a")


def test_blob_id() -> None:
    assert git.blob_id(b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"


def test_gitattributes_is_the_hubs_own_file() -> None:
    assert git.blob_id(GITATTRIBUTES.encode()) == "a6344aac8c09253b3b630fb776ae94478aa0275b"


def test_tree_ids() -> None:
    hello, one = git.blob_id(b"hello\n"), git.blob_id(b"1")
    ids = git.tree_ids({"a/b/c.txt": hello, "a.txt": one, "a/z": one, "a-b": one})
    assert set(ids) == {"", "a", "a/b"}
    assert ids == TREES
    assert git.tree_ids({}) == {"": EMPTY_TREE}


def test_commit_id() -> None:
    message = "first\n\nwhy\n"
    first = git.commit_id(tree=EMPTY_TREE, parent=None, author="alice", time_s=1_700_000_000, message=message)
    second = git.commit_id(
        tree=EMPTY_TREE, parent=first, author="alice", time_s=1_700_000_001, message="second\n"
    )
    assert (first, second) == COMMITS
