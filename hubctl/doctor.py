"""What `hubctl doctor` looks at: libraries, GPU, registry, cache; and how to get what is missing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import hubctl
from hubctl.errors import HubctlError

if TYPE_CHECKING:
    from packaging.requirements import Requirement

    from hubctl.settings import Environment

EXTRAS = {
    "train": "hubctl train",
    "serve": "hubctl serve and bench",
    "registry": "hubctl registry",
    "ui": "hubctl demo's report, and plots",
}
"""Extras of the package, and what they are for."""

_SHOWN = {"torch", "diffusers", "transformers", "peft", "ray", "uvicorn", "matplotlib"}
"""Libraries whose versions people are asked for."""

GPU_QUERY = ("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
LOW_DISK_BYTES = 5 << 30


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that was looked at."""

    what: str
    state: Literal["ok", "missing", "wrong"]
    """`missing` is what one may do without."""
    says: str
    hint: str | None = None
    """The next command."""


def versions() -> Iterator[Finding]:
    """The package itself, and whether the libraries of each extra are there in versions that it knows."""
    running = f"{hubctl.__version__}, Python {platform.python_version()}, {platform.system()}"
    yield Finding(what="hubctl", state="ok", says=running)
    required = [_requirement(line) for line in importlib.metadata.requires("hubctl") or ()]
    for extra, purpose in EXTRAS.items():
        wanted = [one for one in required if one.marker and one.marker.evaluate({"extra": extra})]
        yield judge(extra, purpose, wanted, _installed)


def judge(
    extra: str, purpose: str, wanted: list[Requirement], installed: Callable[[str], str | None]
) -> Finding:
    """Whether what an extra asks for is there; `installed` gives the version of a package, or None."""
    found = {one.name: installed(one.name) for one in wanted}
    hint = f"pip install 'hubctl[{extra}]'"
    if missing := [name for name, version in found.items() if version is None]:
        return Finding(what=purpose, state="missing", says=f"without {', '.join(missing)}", hint=hint)
    other = [f"{one.name} {found[one.name]}" for one in wanted if str(found[one.name]) not in one.specifier]
    if other:
        return Finding(what=purpose, state="wrong", says=f"not made for {', '.join(other)}", hint=hint)
    shown = ", ".join(f"{name} {version}" for name, version in found.items() if name in _SHOWN)
    return Finding(what=purpose, state="ok", says=shown)


def gpu() -> Finding:
    """The NVIDIA GPU, and whether the torch that is installed can use it."""
    if shutil.which(GPU_QUERY[0]) is None:
        return Finding(what="GPU", state="missing", says="none found (no nvidia-smi); the CPU does the work")
    asked = subprocess.run(GPU_QUERY, capture_output=True, text=True, timeout=30, check=False)
    if asked.returncode:
        says = (asked.stdout or asked.stderr).strip().splitlines()
        return Finding(what="GPU", state="wrong", says=says[-1] if says else "nvidia-smi fails")
    torch = _installed("torch")
    if torch is not None and torch.endswith("+cpu"):
        return Finding(
            what="GPU",
            state="wrong",
            says=f"torch {torch} is built for CPUs and cannot use it",
            hint="install the torch that https://pytorch.org/get-started/locally names for your driver",
        )
    return Finding(what="GPU", state="ok", says="; ".join(asked.stdout.strip().splitlines()))


def registry(remote: str | None) -> Iterator[Finding]:
    """The registry that commands talk to, and whether it knows the caller."""
    from hubctl.hub.faults import login_command
    from hubctl.hub.remotes import connect

    try:
        hub = connect(remote)
    except HubctlError as error:
        yield Finding(what="registry", state="wrong", says=error.message, hint=error.hint)
        return
    yield Finding(what="registry", state="ok", says=str(hub))
    if not hub.token:
        says = "none: public repositories can be pulled, nothing pushed"
        yield Finding(what="token", state="missing", says=says, hint=login_command(hub))
        return
    try:
        yield Finding(what="token", state="ok", says=f"belongs to {hub.whoami()}")
    except HubctlError as error:
        yield Finding(what="token", state="wrong", says=error.message, hint=error.hint)


def cache(folder: Path) -> Finding:
    """Where pulled files are kept, and the room that is left there."""
    there = folder
    while not there.exists():
        there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        says = f"{folder} cannot be written to"
        return Finding(what="cache", state="wrong", says=says, hint="set HUBCTL_CACHE to another folder")
    free = shutil.disk_usage(there).free
    says = f"{folder}, {free / 1e9:.1f} GB free"
    if free < LOW_DISK_BYTES:
        return Finding(
            what="cache", state="wrong", says=f"{says}: a base takes more", hint="set HUBCTL_CACHE"
        )
    return Finding(what="cache", state="ok", says=says)


def variables(env: Environment) -> Iterator[Finding]:
    """Environment variables that change where commands go; never the values of secret ones."""
    if env.endpoint:
        yield Finding(
            what="HF_ENDPOINT", state="ok", says=f"{env.endpoint}, which wins over `hubctl remote use`"
        )
    for name, token in (("HUBCTL_TOKEN", env.token), ("HF_TOKEN", env.endpoint_token)):
        if token:
            yield Finding(what=name, state="ok", says="set, which wins over `hubctl login`")


def _requirement(line: str) -> Requirement:
    from packaging.requirements import Requirement

    return Requirement(line)


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
