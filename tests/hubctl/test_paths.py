"""Paths that are harmless on every system, and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hubctl.errors import InputError
from hubctl.paths import check_no_collisions, check_path

PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.parametrize(
    "path",
    [
        "README.md", "a/b/c.txt", ".gitattributes", ".github/x", "Ünïcode/😀.png", "a b.txt", "..a",
        "a..b", "con-a", "controller.json", "git", ".gitx",
    ],
)  # fmt: skip
def test_good_paths(path: str) -> None:
    assert check_path(path) == path


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("", "empty"),
        ("../x", "'..'"),
        ("a/../../x", "'..'"),
        ("a/./x", "'.'"),
        ("a//x", "empty segment"),
        ("a/", "empty segment"),
        ("/etc/passwd", "absolute"),
        ("C:/x", "colon"),
        ("a:stream", "colon"),
        ("..\\x", "backslash"),
        ("\\\\host\\share", "backslash"),
        ("a\0b", "control"),
        ("a\nb", "control"),
        ("a\x7f", "control"),
        ("a\x85", "control"),
        ("a\u2028b", "control"),
        ("exe\u202egnp.txt", "control"),
        ("\ud800", "Unicode"),
        (".git/config", "git"),
        ("a/.GIT/hooks", "git"),
        (".git./x", "git"),
        (".git ", "git"),
        ("git~1/x", "git"),
        ("nul", "device"),
        ("a/COM1.txt", "device"),
        ("aux .c", "device"),
        ("x.", "ends in a dot"),
        ("x ", "ends in a dot"),
        ("a" * 241, "longer"),
        ("a/" * 600 + "a", "longer"),
    ],
)
def test_bad_paths(path: str, reason: str) -> None:
    with pytest.raises(InputError, match="is not allowed") as caught:
        check_path(path)
    assert reason in caught.value.message


@PATIENT
@given(st.text(max_size=60))
def test_a_path_is_kept_or_refused(path: str) -> None:
    try:
        assert check_path(path) == path
    except InputError:
        return
    parts = path.split("/")
    assert not {"", ".", "..", ".git"} & set(parts)
    assert not path.startswith("/")


@pytest.mark.parametrize(
    "paths",
    [
        ["Readme.md", "README.md"],
        ["caf\u00e9", "cafe\u0301"],
        ["a", "a/b"],
        ["A/x", "a"],
        ["A/x", "a/y"],
        ["straße", "STRASSE"],
    ],
)
def test_collisions(paths: list[str]) -> None:
    with pytest.raises(InputError, match=r"same|both"):
        check_no_collisions(paths)


def test_no_collisions() -> None:
    check_no_collisions(["a/x", "a/y", "b", "a/b/x", "ab"])
