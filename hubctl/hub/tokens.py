"""Tokens by endpoint: `tokens.toml` (0600) under HUBCTL_HOME; for huggingface.co huggingface_hub's own store.

A token belongs to an endpoint, not to a name: pointing a name at another URL sends no old token there. The
store of huggingface_hub knows no endpoints, so only a login to huggingface.co may stand in it; there it is
one login, whichever tool made it.
"""

from __future__ import annotations

import os
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from hubctl.errors import InputError
from hubctl.settings import load_toml, toml_string

HF_URL = "https://huggingface.co"


@dataclass(frozen=True, kw_only=True, slots=True)
class _TokensFile:
    tokens: dict[str, str] = field(default_factory=dict, repr=False)


def stored_token(home: Path, url: str) -> str | None:
    """The token that a login stored for `url`."""
    if url != HF_URL:
        return _read(home).get(url)
    from huggingface_hub import constants

    stored = Path(constants.HF_TOKEN_PATH)  # not get_token(): that prefers HF_TOKEN, which is HF_ENDPOINT's
    return (stored.read_text(encoding="utf-8").strip() or None) if stored.is_file() else None


def save_token(home: Path, url: str, token: str, user: str) -> None:
    """Store the token of `user` for `url`, readable by this account alone."""
    if url != HF_URL:
        _write(home, {**_read(home), url: token})
        return
    from huggingface_hub import auth_switch
    from huggingface_hub.utils._auth import _save_token

    _save_token(token, user)
    auth_switch(user)


def forget_token(home: Path, url: str) -> bool:
    """Take the token of `url` away; whether there was one."""
    token = stored_token(home, url)
    if token is None:
        return False
    if url != HF_URL:
        _write(home, {other: kept for other, kept in _read(home).items() if other != url})
        return True
    from huggingface_hub import constants
    from huggingface_hub._login import _logout_from_token
    from huggingface_hub.utils._auth import get_stored_tokens

    for name, known in get_stored_tokens().items():
        if known == token:
            _logout_from_token(name)
    Path(constants.HF_TOKEN_PATH).unlink(missing_ok=True)
    return True


def clean_token(text: str, *, where: str | None = None) -> str:
    """`text` without the white space around it; `where` names the variable or file that it stands in.

    Raises:
        InputError: it is empty, or holds what no token has (the text itself is never shown).
    """
    token = text.strip()
    if not re.fullmatch(r"[\x21-\x7e]{4,4096}", token):
        if where:
            raise InputError(
                f"{where} holds no token", hint=f"set {where} to the whole token, and nothing else"
            )
        raise InputError("that is not a token", hint="paste the whole token, and nothing else")
    return token


def _read(home: Path) -> dict[str, str]:
    path = home / "tokens.toml"
    if not path.exists():
        return {}
    try:
        return load_toml(path, _TokensFile).tokens
    except InputError as error:
        if isinstance(error.__cause__, OSError):
            raise  # unread, so nothing of it is quoted; and nothing is wrong with the logins in it
        # From None, and without its text: messages about a file quote what is in it.
        raise InputError(f"{path} is damaged", hint=f"rm {path}, then hubctl login") from None


def _write(home: Path, tokens: dict[str, str]) -> None:
    lines = [
        "[tokens]",
        *(f"{toml_string(url)} = {toml_string(token)}" for url, token in sorted(tokens.items())),
    ]
    write_private(home / "tokens.toml", "\n".join(lines) + "\n")


def write_private(path: Path, text: str) -> None:
    """Replace `path` in one step; a reader sees the old file or the new one, and nobody else sees either.

    Raises:
        InputError: it cannot be written; what was there stays.
    """
    try:
        _replace(path, text)
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror}", hint="set HUBCTL_HOME to a folder that you may write to"
        ) from error


def _replace(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)  # 0600 from the start
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
