"""Names of users, repositories and references that mean one thing, and nothing else."""

from __future__ import annotations

import pytest

from hubctl.errors import InputError
from hubctl.registry.names import check_ref_name, check_repo_name, check_user_name


@pytest.mark.parametrize("name", ["main", "dev/x", "v1.0", "feature/a-b_c", "ünï"])
def test_good_refs(name: str) -> None:
    assert check_ref_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "", "/a", "a/", "a//b", "a..b", ".a", "a/.b", "a.lock", "a b", "a~1", "a^", "a:b", "a?", "a*", "a[b",
        "a\\b", "a@{1}", "@", "-a", "a.", "a\nb", "HEAD", "head", "refs/heads/a", "a" * 40, "x" * 201,
    ],
)  # fmt: skip
def test_bad_refs(name: str) -> None:
    with pytest.raises(InputError):
        check_ref_name(name)


@pytest.mark.parametrize(
    "name", ["", "..", "a--b", "a..b", "-a", "a-", ".a", "a.git", "a/b", "a b", "x" * 97, "ä"]
)
def test_bad_repo_names(name: str) -> None:
    with pytest.raises(InputError):
        check_repo_name(name)


@pytest.mark.parametrize("name", ["", "api", "Datasets", "a/b", "-a", "a b", "x" * 43, "a.b", "ä"])
def test_bad_user_names(name: str) -> None:
    with pytest.raises(InputError):
        check_user_name(name)
