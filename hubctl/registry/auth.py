"""Secrets: the registry's database file, tokens in headers, links that carry their own permission."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hubctl.errors import AccessError, InputError, NotFoundError
from hubctl.registry.accounts import Accounts
from hubctl.registry.database import Database
from hubctl.registry.names import check_user_name

DATABASE_FILE = "registry.db"


def create_token(root: Path, user: str, **options: Any) -> str:
    """Make a token for `user` (and the user, if new) of the registry in `root`; it is shown only this once.

    Works beside a running registry. `options` are those of `Accounts.create_token`.

    Raises:
        InputError: `user` is not allowed as a name, or is an organisation.
    """
    check_user_name(user)
    with opened(root) as db:
        return Accounts(db).create_token(user, **options)


@contextmanager
def opened(root: Path, *, must_exist: bool = False) -> Iterator[Database]:
    """The database of the registry in `root` for a command that runs beside its server.

    Raises:
        NotFoundError: it must exist, and does not.
        InputError: `root` cannot be a registry.
    """
    if must_exist and not (root / DATABASE_FILE).exists():
        raise NotFoundError(f"there is no registry in {root}", hint=f"hubctl registry serve --root {root}")
    db = open_database(root)
    try:
        yield db
    finally:
        db.close()


def open_database(root: Path) -> Database:
    """The database of the registry in `root`, which only its own user may look into.

    Raises:
        InputError: `root` cannot be a registry.
    """
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{root} cannot hold a registry: {error.strerror}") from error
    return Database(root / DATABASE_FILE)


class Signer:
    """Makes and checks short-lived permissions that need no database: upload links, Xet tokens."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def sign(self, purpose: str, *, lifetime_s: int, **fields: Any) -> str:
        """A URL-safe text saying `fields`, valid for `lifetime_s` seconds and only for `purpose`."""
        payload = {**fields, "purpose": purpose, "expires_s": int(time.time()) + lifetime_s}
        body = base64.urlsafe_b64encode(json.dumps(payload).encode()).decode().rstrip("=")
        return f"{body}.{self._mac(body)}"

    def check(self, purpose: str, text: str) -> dict[str, Any]:
        """The fields of a signed text.

        Raises:
            AccessError: forged, for something else, or too old.
        """
        body, _, mac = text.partition(".")
        if not hmac.compare_digest(self._mac(body).encode(), mac.encode("utf-8", "replace")):
            raise AccessError("this link was not signed by this registry", forbidden=True)
        fields: dict[str, Any] = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        if fields["purpose"] != purpose:
            raise AccessError(f"this link is not for {purpose}", forbidden=True)
        if fields["expires_s"] < time.time():
            raise AccessError("this link has expired: start the upload again")
        return fields

    def _mac(self, body: str) -> str:
        return hmac.new(self._secret, body.encode("utf-8", "replace"), hashlib.sha256).hexdigest()


def bearer_token(header: str | None) -> str | None:
    """The token of an Authorization header (`Bearer x`, or the password of `Basic`, as git-lfs sends it)."""
    if not header:
        return None
    scheme, _, value = header.partition(" ")
    if scheme.lower() == "bearer" and value.strip():
        return value.strip()
    if scheme.lower() == "basic":
        try:
            decoded = base64.b64decode(value.strip(), validate=True).decode()
        except ValueError as error:
            raise InputError("the Authorization header is malformed") from error
        return decoded.partition(":")[2]
    raise InputError("the Authorization header is malformed: send 'Bearer TOKEN'")
