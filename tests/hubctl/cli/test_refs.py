"""tag, branch, move: as typed, and what the stock client then sees."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, NamedTuple

import pytest
from huggingface_hub import HfApi

from tests.cli import run_cli

if TYPE_CHECKING:
    from tests.registry_server import RegistryServer

_numbers = itertools.count()


class Session(NamedTuple):
    """A user who is logged in, with a repository of two commits."""

    api: HfApi
    repo: str
    first: str
    second: str


@pytest.fixture
def session(registry: RegistryServer) -> Session:
    user = f"namer{next(_numbers)}"
    token = registry.token(user)
    added = run_cli("remote", "add", "local", registry.endpoint, "--use", "--token-stdin", stdin=token + "\n")
    assert added.code == 0, added.err
    api, repo = HfApi(registry.endpoint, token=token), f"{user}/line-art"
    api.create_repo(repo)
    commits = [
        api.upload_file(repo_id=repo, path_or_fileobj=text, path_in_repo="notes.txt").oid
        for text in (b"one", b"two")
    ]
    return Session(api, repo, *commits)


@pytest.mark.parametrize("kind", ["tag", "branch"])
def test_commits_get_names_and_lose_them(session: Session, kind: str) -> None:
    repo = session.repo
    planned = run_cli(kind, repo, "now", "--dry-run")
    assert f"{repo}@now would be {session.second[:12]}" in planned.out
    assert "now" not in [row["name"] for row in run_cli(kind, repo, "--json").json()]
    assert run_cli(kind, repo, "now", "-q").out == f"{session.second}\n"
    made = run_cli(kind, f"{repo}@{session.first}", "dev/first", "--json").json()
    assert made == {"name": "dev/first", "repo": repo, "commit": session.first, "dry_run": False}
    assert session.api.repo_info(repo, revision="dev/first").sha == session.first

    listed = {row["name"]: row["commit"] for row in run_cli(kind, repo, "--json").json()}
    main = {"main": session.second} if kind == "branch" else {}
    assert listed == {"now": session.second, "dev/first": session.first, **main}

    again = run_cli(kind, repo, "now")
    assert again.code == 7
    assert f"has a {kind} 'now' at {session.second[:12]}" in again.err
    assert run_cli(kind, repo, "now", "--dry-run").code == 7
    assert f"{kind} now would go" in run_cli(kind, repo, "now", "--delete", "--dry-run").out
    assert run_cli(kind, repo, "now", "--delete", "-q").out == "now\n"
    assert run_cli(kind, repo, "now", "--delete", "--dry-run").code == 3
    assert run_cli(kind, repo, "now", "--delete").code == 3
    refs = session.api.list_repo_refs(repo)
    assert {ref.name for ref in (refs.tags if kind == "tag" else refs.branches)} == {"dev/first", *main}


def test_a_repository_gets_another_name(session: Session) -> None:
    new = session.repo.replace("line-art", "drawings")
    assert run_cli("move", session.repo, new, "--dry-run", "--json").json()["dry_run"]
    assert run_cli("move", session.repo, "somebody-else/x").code == 4
    assert session.api.repo_info(session.repo).id == session.repo
    assert run_cli("move", session.repo, new, "-q").out == f"{new}\n"
    assert session.api.repo_info(new).sha == session.second
    session.api.create_repo(session.repo, exist_ok=True)
    for options in ((), ("--dry-run",)):
        refused = run_cli("move", new, session.repo, *options)
        assert refused.code == 7
        assert f"there is a repository {session.repo}" in refused.err
    assert session.api.repo_info(new).sha == session.second


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["tag", "alice/line-art", "a..b"], 2, "'a..b' is not a revision"),
        (["tag", "alice/line-art", "--delete"], 2, "which tag?"),
        (["branch", "alice"], 2, "'alice' is not a repository id"),
        (["move", "alice/x", "../x"], 2, "'../x' is not a repository id"),
        (["tag", "nobody/nothing", "v1"], 3, "has no repository nobody/nothing"),
    ],
)
def test_what_cannot_be_named(session: Session, words: list[str], code: int, says: str) -> None:
    ran = run_cli(*words)
    assert ran.code == code
    assert says in ran.err
