"""What can be wrong with a server's settings on this machine, found before Ray is even imported."""

from __future__ import annotations

import errno
import socket
from dataclasses import replace
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from hubctl.base_models import embedded_path, locate_base, refuse_excess_classes
from hubctl.errors import ConflictError, InputError, UnavailableError
from hubctl.hub.lock import fetch_base
from hubctl.hub.remotes import connect
from serve.config import ServeConfig

CLUSTER_TIMEOUT_S = 5.0
# gRPC is HTTP/2: both sides begin with a frame of settings, 3 bytes of length before its type (RFC 9113).
_HTTP2_SETTINGS, _HTTP2_HEAD_BYTES = b"\x04", 9
_HTTP2_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + _HTTP2_SETTINGS + bytes(5)
_TLS_ALERT = b"\x15"
_HELD: list[socket.socket] = []
"""Ports that were chosen here: until Ray listens on them, some seconds later, nobody else is given them."""


def prepare(config: ServeConfig) -> ServeConfig:
    """The settings with a real port and folders in full, after a look at the port, the remote and the bases.

    Bases on a hub are downloaded here, unless a cluster runs them: there each node fetches its own.

    Raises:
        ConflictError: the port is taken.
        NotFoundError: no such base model, or no such remote.
        InputError: this machine cannot listen there, or a base is of a kind that hubctl does not run, or has
            too many classes.
        UnavailableError: there is no Ray where the cluster should be.
    """
    config = replace(config, port=_free_port(config.host, config.port))
    if config.ray_address is None:
        return _located(config)
    check_cluster(config.ray_address)
    return config


def check_cluster(address: str, timeout_s: float = CLUSTER_TIMEOUT_S) -> None:
    """See whether somebody at `host:port` or `ray://host:port` speaks gRPC: Ray itself would wait for ever.

    Other forms, `auto` among them, are left to Ray.

    Raises:
        UnavailableError: nobody listens there, or somebody who is no Ray, or says nothing for `timeout_s`.
    """
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:  # no number, or none that a port can have
        return
    if host is None or port is None:
        return
    try:
        with socket.create_connection((host, port), timeout_s) as connection:
            connection.sendall(_HTTP2_HELLO)
            answer = connection.recv(_HTTP2_HEAD_BYTES)
    except OSError as error:
        raise UnavailableError(
            f"no Ray cluster at {address}: {error.strerror or error}", hint="ray start --head"
        ) from None
    # Behind TLS a server answers what is none with an alert.
    if not answer.startswith(_TLS_ALERT) and answer[3:4] != _HTTP2_SETTINGS:
        raise UnavailableError(
            f"no Ray cluster at {address}: somebody else listens there",
            hint="name the port of `ray start --head`, by default 6379, or of its clients, ray://HOST:10001",
        )


def _located(config: ServeConfig) -> ServeConfig:
    """The same with folders spelled out in full, once every base has been found."""
    hub = connect(config.remote)
    bases = []
    for base in config.bases:
        refuse_excess_classes(locate_base(base.ref, fetch=partial(fetch_base, hub, config.locked)))
        if embedded_path(base.ref) is None and Path(base.ref).is_dir():
            # Replicas have a working directory of their own; cards may name the folder as the trainer saw it.
            aliases = (*base.aliases, base.ref)
            base = replace(base, ref=str(Path(base.ref).resolve()), name=base.name, aliases=aliases)
        bases.append(base)
    return replace(config, bases=tuple(bases))


def _free_port(host: str, port: int) -> int:
    """`port`, or a free one for 0.

    Raises:
        ConflictError: somebody listens there.
        InputError: this machine has no such address, or may not listen there.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    probe = socket.socket(family, socket.SOCK_STREAM)
    # As Ray's own: with both it may bind the port while we hold it.
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held = port == 0 and hasattr(socket, "SO_REUSEPORT")
    if held:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        probe.bind((host, port))
    except OSError as error:
        probe.close()
        if error.errno == errno.EADDRINUSE:
            raise ConflictError(
                f"port {port} on {host} is in use",
                hint=f"choose another: hubctl serve --port {port + 1 if port < 65535 else 8000}",
            ) from None
        raise InputError(f"cannot listen on {host}:{port}: {error.strerror}", param="host") from None
    free: int = probe.getsockname()[1]
    if held:
        _HELD.append(probe)
    else:
        probe.close()
    return free
