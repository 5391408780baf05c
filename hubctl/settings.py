"""Settings from outside: TOML files into frozen dataclasses, and the only reader of the environment."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import os
import re
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from hubctl.errors import InputError

T = TypeVar("T")

SIZES = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
"""Bytes of the units that sizes may have."""
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Environment:
    """What hubctl takes from environment variables; nothing else reads them."""

    home: Path
    """`HUBCTL_HOME`, else `~/.hubctl`: remotes, tokens and, by default, the cache."""
    cache: Path
    """`HUBCTL_CACHE`, else `home/cache`."""
    cache_quota: int | None
    """`HUBCTL_CACHE_QUOTA`, as 20GB: bytes that the cache is brought back to after each download."""
    endpoint: str | None
    """`HF_ENDPOINT`."""
    endpoint_token: str | None = field(repr=False)
    """`HF_TOKEN`: only ever sent to `endpoint`, or to huggingface.co when that is unset."""
    token: str | None = field(repr=False)
    """`HUBCTL_TOKEN`: for whichever remote is in use."""


def environment() -> Environment:
    """Read the environment now; never at import, so that tests and long-lived servers see what is set.

    Raises:
        InputError: a variable cannot be what it says; the message names it.
    """
    home = _folder("HUBCTL_HOME", os.environ.get("HUBCTL_HOME") or "~/.hubctl")
    cache = os.environ.get("HUBCTL_CACHE")
    return Environment(
        home=home,
        cache=_folder("HUBCTL_CACHE", cache) if cache else home / "cache",
        cache_quota=_cache_quota(os.environ.get("HUBCTL_CACHE_QUOTA")),
        endpoint=os.environ.get("HF_ENDPOINT") or None,
        endpoint_token=os.environ.get("HF_TOKEN") or None,
        token=os.environ.get("HUBCTL_TOKEN") or None,
    )


def no_color() -> bool:
    """`NO_COLOR`; read apart from the rest, of which some may be wrong: that is said in colour, or not."""
    return bool(os.environ.get("NO_COLOR"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """This process among those that train together, by the variables of torchrun and `accelerate launch`."""

    rank: int
    """`RANK`: its number, from 0, over all machines."""
    count: int
    """`WORLD_SIZE`: how many there are; 1 for a process on its own."""
    count_here: int
    """`LOCAL_WORLD_SIZE`: how many there are on this machine."""


def place() -> Place:
    """Read the place now, as `environment` does."""
    names = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1}
    try:
        rank, count, here = (int(os.environ.get(name) or alone) for name, alone in names.items())
    except ValueError as error:
        raise InputError(f"one of {', '.join(names)} is no number: {error}") from error
    return Place(rank=rank if count > 1 else 0, count=count, count_here=here)


def read_amount(text: str, units: Mapping[str, int]) -> int | None:
    """`1.5GB` in the smallest of `units` (in lower case; "" is no unit); None when it is no such amount."""
    match = _AMOUNT.fullmatch(text.strip())
    factor = units.get(match[2].lower()) if match else None
    return int(float(match[1]) * factor) if match and factor else None


def _folder(name: str, text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # no such account, or one that has no home
        raise InputError(f"{text} leads nowhere: {error}", hint=f"set {name} to a folder") from error


def _cache_quota(text: str | None) -> int | None:
    if not text:
        return None
    quota = read_amount(text, SIZES)
    if quota is None:
        raise InputError(f"HUBCTL_CACHE_QUOTA is '{text}'", hint="write it like 20GB, or unset it")
    return quota


def child_environment(**changes: str) -> dict[str, str]:
    """The environment for a subprocess: ours, with `changes` on top."""
    return {**os.environ, **changes}


def export_defaults(**values: str) -> None:
    """Set variables that a library reads from nowhere else, here and in children, unless set already."""
    for name, value in values.items():
        os.environ.setdefault(name, value)


def export(**values: str) -> None:
    """Set variables that a library reads from nowhere else, here and in children."""
    os.environ.update(values)


def load_toml(path: Path, cls: type[T]) -> T:
    """Read `path` into the dataclass `cls`, strictly.

    Raises:
        InputError: the file is missing or not TOML, a key is unknown (the nearest known one is named),
            missing, or has a value of another type.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text") from error
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path} is not valid TOML: {error}") from error
    return from_mapping(cls, data, where=str(path))


def toml_string(text: str) -> str:
    """`text` as a TOML basic string."""
    # JSON's escapes are TOML's, but for surrogate pairs, which TOML refuses, and DEL, which JSON leaves.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def from_mapping(cls: type[T], data: dict[str, Any], *, where: str) -> T:
    """Build the dataclass `cls` from plain values; see `load_toml` for what is refused."""
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    for key in data:
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            raise InputError(
                f"{where}: unknown setting '{key}'",
                hint=f"did you mean '{near[0]}'?" if near else f"known settings: {', '.join(sorted(fields))}",
            )
    values = {key: _convert(hints[key], value, where=f"{where}: {key}") for key, value in data.items()}
    missing = [
        name
        for name, f in fields.items()
        if name not in values
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise InputError(f"{where}: setting '{missing[0]}' is missing", hint=f"add `{missing[0]} = ...`")
    return cls(**values)


def _convert(hint: Any, value: Any, *, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in args:
            return None  # TOML has no null, but JSON does
        (hint,) = (a for a in args if a is not type(None))  # settings only use `X | None`
        return _convert(hint, value, where=where)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, dict):
            raise InputError(f"{where} is a table, not {type(value).__name__}")
        return from_mapping(hint, value, where=where)
    if origin is tuple:
        if not isinstance(value, list):
            raise InputError(f"{where} is a list, not {type(value).__name__}")
        return tuple(_convert(args[0], v, where=f"{where}[{i}]") for i, v in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise InputError(f"{where} is a table, not {type(value).__name__}")
        return {k: _convert(args[1], v, where=f"{where}.{k}") for k, v in value.items()}
    if origin is typing.Literal:
        if value not in args:
            raise InputError(f"{where} is '{value}'", hint=f"use one of {', '.join(map(str, args))}")
        return value
    if hint is Path and isinstance(value, str):
        return Path(value).expanduser()
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{where} is {value}", hint="give a finite number")
    if hint is Any:
        return value
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise InputError(f"{where} is {hint.__name__}, not {type(value).__name__} ({value!r})")
    return value
