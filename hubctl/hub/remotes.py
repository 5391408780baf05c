"""Registries by name: `remotes.toml` under HUBCTL_HOME, and which of them a command talks to."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from hubctl.errors import ConflictError, InputError, NotFoundError
from hubctl.hub.tokens import HF_URL, clean_token, forget_token, stored_token, write_private
from hubctl.loopback import LOOPBACK
from hubctl.settings import Environment, environment, load_toml, toml_string

if TYPE_CHECKING:
    from hubctl.hub.client import Hub

HF_NAME = "hf"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Remote:
    """A registry that hubctl knows by name."""

    name: str
    url: str
    current: bool
    """Used when neither `--remote` nor HF_ENDPOINT says otherwise."""
    logged_in: bool
    """A token is stored for its URL."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Entry:
    url: str


@dataclass(frozen=True, kw_only=True, slots=True)
class _RemotesFile:
    current: str = HF_NAME
    remotes: dict[str, _Entry] = field(default_factory=dict)


def list_remotes(home: Path) -> list[Remote]:
    """All remotes, the built-in `hf` first."""
    file = _read_remotes(home)
    urls = {HF_NAME: HF_URL, **{name: entry.url for name, entry in sorted(file.remotes.items())}}
    return [
        Remote(
            name=name, url=url, current=name == file.current, logged_in=stored_token(home, url) is not None
        )
        for name, url in urls.items()
    ]


def add_remote(home: Path, name: str, url: str, *, use: bool = False) -> Remote:
    """Remember `url` as `name`; adding the same pair again changes nothing.

    Raises:
        InputError: the name or URL is malformed, or the URL carries credentials.
        ConflictError: the name stands for another URL already.
    """
    if not _NAME.fullmatch(name):
        raise InputError(f"'{name}' is not a remote's name", hint="use letters, digits, - and _")
    url = normal_url(url)
    file = _read_remotes(home)
    known = HF_URL if name == HF_NAME else file.remotes[name].url if name in file.remotes else url
    if known != url:
        raise ConflictError(
            f"remote '{name}' is {known} already",
            hint="choose another name"
            if name == HF_NAME
            else f"hubctl remote remove {name}, then add it again",
        )
    entries = file.remotes if name == HF_NAME else {**file.remotes, name: _Entry(url=url)}
    current = name if use else file.current
    _write_remotes(home, _RemotesFile(current=current, remotes=entries))
    return Remote(name=name, url=url, current=name == current, logged_in=stored_token(home, url) is not None)


def use_remote(home: Path, name: str) -> Remote:
    """Make `name` the current remote."""
    remote = get_remote(home, name)
    _write_remotes(home, _RemotesFile(current=name, remotes=_read_remotes(home).remotes))
    return remote


def remove_remote(home: Path, name: str) -> Remote:
    """Forget a remote, and its token unless another name shares the URL; `hf` becomes current if it was."""
    remote = get_remote(home, name)
    if name == HF_NAME:
        raise InputError(f"remote '{HF_NAME}' is built in", hint="hubctl remote use NAME selects another")
    file = _read_remotes(home)
    left = {other: entry for other, entry in file.remotes.items() if other != name}
    _write_remotes(
        home, _RemotesFile(current=HF_NAME if file.current == name else file.current, remotes=left)
    )
    if remote.url not in {HF_URL, *(entry.url for entry in left.values())}:
        forget_token(home, remote.url)
    return remote


def get_remote(home: Path, name: str) -> Remote:
    """The remote called `name`.

    Raises:
        NotFoundError: there is none; the hint names those that exist.
    """
    remotes = list_remotes(home)
    for remote in remotes:
        if remote.name == name:
            return remote
    known = ", ".join(remote.name for remote in remotes)
    raise NotFoundError(f"no remote '{name}'", hint=f"hubctl remote add {name} URL (known: {known})")


def normal_url(url: str) -> str:
    """`url` as tokens are keyed: scheme, host, port and path, without a trailing slash.

    Raises:
        InputError: it is not http(s), has no host, or carries a password, query or fragment.
    """
    try:
        parts = urlsplit(url.strip())
        port = parts.port
    except ValueError:
        raise InputError(f"'{url}' is not a URL", hint="for example http://127.0.0.1:8765") from None
    if parts.username or parts.password:
        raise InputError(
            "a remote's URL must not carry a user or password", hint="hubctl login stores a token"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise InputError(f"'{url}' is not an http(s) URL", hint="for example http://127.0.0.1:8765")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    default = {"http": 80, "https": 443}[parts.scheme]
    shown = f":{port}" if port not in (None, default) else ""
    return f"{parts.scheme}://{host}{shown}{parts.path.rstrip('/')}"


def sends_in_clear(url: str) -> bool:
    """Whether a token sent to `url` crosses a network unencrypted."""
    parts = urlsplit(url)
    return parts.scheme == "http" and parts.hostname not in LOOPBACK


def select_remote(remote: str | None, env: Environment) -> Remote:
    """The registry to talk to: `--remote`, else HF_ENDPOINT, else the current remote, else huggingface.co."""
    remotes = list_remotes(env.home)
    if remote is not None:
        return get_remote(env.home, remote)
    if env.endpoint:
        url = normal_url(env.endpoint)
        for known in remotes:
            if known.url == url:
                return known
        logged_in = stored_token(env.home, url) is not None
        return Remote(name=urlsplit(url).netloc, url=url, current=False, logged_in=logged_in)
    return next((known for known in remotes if known.current), remotes[0])


def connect(remote: str | None = None, *, env: Environment | None = None, token: str | None = None) -> Hub:
    """A `Hub` for the chosen registry, with the token that belongs to it (`token` instead, when given).

    Raises:
        NotFoundError: no remote has that name.
        InputError: HUBCTL_TOKEN or HF_TOKEN, when it is this registry's, holds no token.
    """
    from hubctl.hub.client import Hub

    env = env or environment()
    chosen = select_remote(remote, env)
    if token is None and env.token:
        token = clean_token(env.token, where="HUBCTL_TOKEN")
    if token is None and env.endpoint_token and chosen.url == _endpoint(env):
        token = clean_token(env.endpoint_token, where="HF_TOKEN")
    if token is None:
        token = stored_token(env.home, chosen.url)
    return Hub(chosen.url, token, chosen.name)


def connect_to(url: str, *, env: Environment | None = None) -> Hub:
    """A `Hub` for the registry at `url`, with a token only if one was stored for that very address.

    The environment's tokens are for the registry that was chosen: this is it only if it has its address.
    """
    from hubctl.hub.client import Hub

    env = env or environment()
    url = normal_url(url)
    if select_remote(None, env).url == url:
        return connect(env=env)
    name = next((known.name for known in list_remotes(env.home) if known.url == url), urlsplit(url).netloc)
    return Hub(url, stored_token(env.home, url), name)


def _endpoint(env: Environment) -> str:
    """The registry that HF_TOKEN is for."""
    return normal_url(env.endpoint) if env.endpoint else HF_URL


def _read_remotes(home: Path) -> _RemotesFile:
    path = home / "remotes.toml"
    return load_toml(path, _RemotesFile) if path.exists() else _RemotesFile()


def _write_remotes(home: Path, file: _RemotesFile) -> None:
    lines = [f"current = {toml_string(file.current)}"]
    for name, entry in sorted(file.remotes.items()):
        lines += ["", f"[remotes.{toml_string(name)}]", f"url = {toml_string(entry.url)}"]
    write_private(home / "remotes.toml", "\n".join(lines) + "\n")
