"""The server's settings, as they stand in `serve.toml` and in the `args` of a Ray Serve config."""

from __future__ import annotations

import math
import re
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubctl.errors import InputError
from hubctl.hub.lock import LockFile
from hubctl.settings import from_mapping, load_toml
from serve.engine.config import EngineConfig

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")


@dataclass(frozen=True, kw_only=True, slots=True)
class BaseConfig:
    """One base model and the replicas that run it."""

    ref: str
    """An embedded name, a folder, or `owner/name[@revision]` on the hub."""
    name: str = ""
    """What requests may call it, and the name of its deployment; by default the last part of `ref`."""
    aliases: tuple[str, ...] = ()
    """Further ids by which adapters' cards name this base, for example its id on another hub."""
    min_replicas: int = 1
    max_replicas: int = 1
    target_ongoing_requests: float = 8.0
    """Requests a replica should be working on: Ray adds replicas above it. About one full batch."""
    max_ongoing_requests: int | None = None
    """Requests a replica takes at once; the rest waits in the ingress, whose line knows no tenants. By
    default what the engine runs and lets wait, and `engine.max_running` more that it can refuse."""
    max_queued_requests: int = 256
    """Requests that may wait in the ingress; further ones are told to come back later (429)."""
    num_cpus: float | None = None
    """What Ray reserves for each replica, and so its threads; by default all of the machine's, shared with
    the base's other replicas, and in a cluster one."""
    num_gpus: float | None = None
    """What Ray reserves for each replica; by default an equal share of the machine's, in a cluster none."""
    engine: EngineConfig = field(default_factory=EngineConfig)

    def __post_init__(self) -> None:
        """Fill in the name, and refuse what Ray would refuse later and less clearly."""
        name = self.name or self.ref.rstrip("/").rpartition("/")[2].partition("@")[0]
        if not _NAME.fullmatch(name):
            raise InputError(
                f"'{name}' cannot name a base",
                hint=f'give it one: [[bases]] ref = "{self.ref}", name = "..." (letters, digits, - _ .)',
                param="name",
            )
        object.__setattr__(self, "name", name)
        where = f"base '{name}'"
        if not 0 <= self.min_replicas <= self.max_replicas or self.max_replicas < 1:
            raise InputError(
                f"{where}: {self.min_replicas} to {self.max_replicas} replicas is no range",
                hint="min_replicas is 0 or more, max_replicas at least 1 and not below it",
                param="max_replicas",
            )
        _positive(self, where, "target_ongoing_requests", "max_ongoing_requests", "max_queued_requests")
        if (self.num_cpus or 0) < 0 or (self.num_gpus or 0) < 0:
            raise InputError(f"{where}: num_cpus and num_gpus cannot be negative", param="num_gpus")

    @property
    def ongoing_requests(self) -> int:
        """`max_ongoing_requests`, or what it is by default."""
        if self.max_ongoing_requests is not None:
            return self.max_ongoing_requests
        return 2 * self.engine.max_running + self.engine.max_queued


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """The most that one request may ask for; more is refused before it reaches an engine."""

    max_pixels: int = 1 << 21
    """Of one generated image, width x height."""
    max_input_pixels: int = 1 << 24
    """Of an image sent in, width x height."""
    max_images: int = 8
    """`n` of one request."""
    max_steps: int = 150
    max_loras: int = 8
    max_prompt_chars: int = 4000
    max_body_bytes: int = 20 << 20
    timeout_s: float = 600.0
    """From arrival to answer; work still waiting or running then is given up."""

    def __post_init__(self) -> None:
        """Refuse limits that allow nothing."""
        _positive(self, "limits", *type(self).__dataclass_fields__)


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeConfig:
    """Everything `hubctl serve` needs to know. Secrets are not in it: tokens stay with their remote."""

    bases: tuple[BaseConfig, ...]
    host: str = "127.0.0.1"
    port: int = 8000
    """0 means: any free one."""
    remote: str | None = None
    """The hub that adapters (and bases that are not on disk) come from; by default the current remote."""
    ray_address: str | None = None
    """A running Ray cluster (`auto`, or `host:port`); by default one is started here, and stopped again."""
    ingress_replicas: int = 1
    """Processes that answer HTTP; they need no GPU."""
    resolve_ttl_s: float = 1.0
    """For how long an adapter's name keeps meaning the same commit before the hub is asked again."""
    resolve_stale_s: float = 300.0
    """For how long a name seen before is still served while the hub cannot be reached."""
    limits: Limits = field(default_factory=Limits)
    locked: LockFile | None = None
    """The only adapters that may be served, each at its commit; what `hubctl serve --locked` reads."""

    def __post_init__(self) -> None:
        """Refuse configurations without bases, with a name that means two, or with impossible numbers."""
        if not self.bases:
            raise InputError("no base model to serve", hint="hubctl serve --base emoji-64", param="bases")
        names = [base.name for base in self.bases]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise InputError(
                f"two bases are called '{twice}'", hint="give each [[bases]] its own `name`", param="bases"
            )
        for base in self.bases:
            others = {other.name for other in self.bases if other.ref != base.ref}
            if taken := next((alias for alias in base.aliases if alias in others), None):
                raise InputError(
                    f"base '{base.name}' has the alias '{taken}', which is another base's name",
                    hint="a request for it could mean either: leave the alias out",
                    param="bases",
                )
        if not 0 <= self.port <= 65535:
            raise InputError(f"port {self.port} is not between 0 and 65535", param="port")
        _positive(self, "server", "ingress_replicas")
        if self.resolve_ttl_s < 0 or self.resolve_stale_s < 0:
            raise InputError("resolve_ttl_s and resolve_stale_s cannot be negative", param="resolve_ttl_s")


def load_config(path: Path) -> ServeConfig:
    """Read `serve.toml`; see `hubctl.settings.load_toml` for what is refused."""
    return load_toml(path, ServeConfig)


def config_from_args(args: dict[str, Any]) -> ServeConfig:
    """The settings from the `args` of a Ray Serve application: the same keys as in `serve.toml`."""
    return from_mapping(ServeConfig, args, where="args")


def config_to_args(config: ServeConfig) -> dict[str, Any]:
    """The inverse of `config_from_args`, as plain lists and tables; default values are left out."""
    return _told(config)


def share_gpus(config: ServeConfig, gpus: float) -> ServeConfig:
    """Give each replica of the bases that do not say how much of a GPU they want an equal share of `gpus`.

    A share is never more than one GPU: an engine uses one device.

    Raises:
        InputError: the bases that do say want more than there is; Ray would wait for it without a word.
    """
    needed = sum(base.min_replicas * (base.num_gpus or 0.0) for base in config.bases)
    if needed > gpus:
        raise InputError(
            f"the bases ask for {needed:g} GPUs, this machine has {gpus:g}",
            hint="leave num_gpus out: the GPUs there are will be shared",
            param="num_gpus",
        )
    taken = sum(base.max_replicas * (base.num_gpus or 0.0) for base in config.bases)
    open_replicas = sum(base.max_replicas for base in config.bases if base.num_gpus is None)
    if not open_replicas:
        return config
    share = max(0.0, gpus - taken) / open_replicas
    share = (
        1.0 if share >= 1 else math.floor(share * 1000) / 1000
    )  # rounding up would leave one replica without
    bases = tuple(replace(base, num_gpus=share) if base.num_gpus is None else base for base in config.bases)
    return replace(config, bases=bases)


def share_cpus(config: ServeConfig, cpus: int) -> ServeConfig:
    """Let the replicas of each base that does not say how many CPUs it wants share all of `cpus`.

    Bases are not set against each other: they are rarely all at work, and their threads sleep when idle.
    """
    return replace(
        config,
        bases=tuple(
            replace(base, num_cpus=max(1.0, float(cpus // base.max_replicas)))
            if base.num_cpus is None
            else base
            for base in config.bases
        ),
    )


def _told(config: DataclassInstance) -> dict[str, Any]:
    """The fields that differ from their defaults."""
    told = {}
    for field_ in fields(config):
        value = getattr(config, field_.name)
        default = field_.default if field_.default_factory is MISSING else field_.default_factory()
        if value != default:
            told[field_.name] = _plain(value)
    return told


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return _told(value)
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _positive(config: object, where: str, *names: str) -> None:
    for name in names:
        if (value := getattr(config, name)) is not None and value <= 0:
            raise InputError(f"{where}: {name} is {value}", hint="use a number above 0", param=name)
