"""Which names are allowed for users, repositories and references; for files see `hubctl.paths`. Pure."""

from __future__ import annotations

import re

from hubctl.errors import InputError
from hubctl.paths import has_control

_USER = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_-]{0,40}[A-Za-z0-9])?")
_REPO = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?")
_COMMIT = re.compile(r"[0-9a-f]{40}")

# They are first segments of the registry's own URLs.
_RESERVED_USERS = frozenset({"api", "datasets", "spaces", "models", "xet", "lfs", "healthz"})
MAX_REF_BYTES = 200


def check_user_name(name: str) -> str:
    """Return `name` if a user may be called so, else raise InputError."""
    if not _USER.fullmatch(name) or name.lower() in _RESERVED_USERS:
        raise InputError(
            f"user name {name!r} is not allowed",
            hint="use up to 42 letters, digits, '-' and '_', starting and ending with a letter or digit",
        )
    return name


def check_repo_name(name: str) -> str:
    """Return `name` (without its owner) if a repository may be called so, else raise InputError."""
    if not _REPO.fullmatch(name) or "--" in name or ".." in name or name.endswith((".git", ".ipynb")):
        raise InputError(
            f"repository name {name!r} is not allowed: up to 96 letters, digits, '-', '_' and '.', "
            "no '--' or '..', not ending in '-', '.', '.git' or '.ipynb'"
        )
    return name


def check_ref_name(name: str) -> str:
    """Return `name` if a branch or tag may be called so (git's rules), else raise InputError."""
    bad = (
        not name
        or len(name.encode("utf-8", "replace")) > MAX_REF_BYTES
        or has_control(name)
        or any(char in " ~^:?*[\\" for char in name)
        or ".." in name
        or "@{" in name
        or name == "@"
        or any(
            not part or part.startswith((".", "-")) or part.endswith((".", ".lock"))
            for part in name.split("/")
        )
    )
    if bad:
        raise InputError(f"{name!r} is not allowed as the name of a branch or tag")
    if name.startswith("refs/") or name.upper() == "HEAD" or _COMMIT.fullmatch(name):
        raise InputError(f"{name!r} would be mistaken for another kind of revision")
    return name
