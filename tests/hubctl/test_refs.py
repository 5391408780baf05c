from __future__ import annotations

import contextlib

import pytest
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils._validators import validate_repo_id
from hypothesis import given
from hypothesis import strategies as st

from hubctl.errors import InputError
from hubctl.refs import AdapterRef, PinnedRef, check_repo_id


@pytest.mark.parametrize(
    ("text", "repo_id", "revision"),
    [
        ("alice/cats", "alice/cats", None),
        ("alice/cats@main", "alice/cats", "main"),
        ("a/b@refs/pr/1", "a/b", "refs/pr/1"),
        ("Alice-B/cats_v1.2@0123abc", "Alice-B/cats_v1.2", "0123abc"),
    ],
)
def test_parse(text: str, repo_id: str, revision: str | None) -> None:
    ref = AdapterRef.parse(text)
    assert (ref.repo_id, ref.revision) == (repo_id, revision)
    assert str(ref) == text
    assert AdapterRef.parse(str(ref)) == ref


@pytest.mark.parametrize(
    "text",
    ["", "cats", "a/b/c", "/cats", "alice/", "../etc/passwd", "alice/..", "./a", "/tmp/x", "https://hub/a/b",
     "a b/c", "alice/cats\n", "alice/ca--ts", "-a/b", "a/b-", "a/b.git", "a/b@", "a/b@../x", "a/b@x/",
     "a/b@x y", "a/b@" + "x" * 256, "a/" + "b" * 97, "a\\b", "alice/cäts"],
)  # fmt: skip
def test_everything_else_is_refused_with_a_hint(text: str) -> None:
    with pytest.raises(InputError) as caught:
        AdapterRef.parse(text)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("text", "rule"), [("alice/ca--ts", "no --"), ("alice/" + "b" * 97, "at most 96"), ("a/b.git", "no .git")]
)
def test_the_hint_tells_the_rule_that_a_name_breaks(text: str, rule: str) -> None:
    with pytest.raises(InputError) as caught:
        check_repo_id(text)
    assert rule in str(caught.value.hint)


@given(st.text(st.sampled_from("aB0-_.-/@ é\n"), max_size=12))
def test_what_is_accepted_the_hub_accepts_too(text: str) -> None:
    try:
        repo_id = check_repo_id(text)
    except InputError:
        return
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        pytest.fail(f"{repo_id!r}: {error}")


@given(st.text(max_size=30))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    with contextlib.suppress(InputError):
        assert AdapterRef.parse(str(AdapterRef.parse(text))) == AdapterRef.parse(text)


def test_a_pinned_ref_shows_the_commit_in_short() -> None:
    assert str(PinnedRef("alice/cats", "main", "0123456789abcdef" * 2 + "01234567", "0" * 64)) == (
        "alice/cats@0123456789ab"
    )
