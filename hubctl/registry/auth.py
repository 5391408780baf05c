"""Users, their tokens, and links that carry their own permission."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import time
from pathlib import Path
from typing import Any

from hubctl.errors import AccessError, InputError
from hubctl.registry.database import Database, now
from hubctl.registry.names import check_user_name

DATABASE_FILE = "registry.db"


def create_token(root: Path, user: str) -> str:
    """Make a token for `user` (and the user, if new) of the registry in `root`; it is shown only this once.

    Works beside a running registry.

    Raises:
        InputError: `user` is not allowed as a name.
    """
    check_user_name(user)
    db = open_database(root)
    try:
        return Accounts(db).create_token(user)
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


class Accounts:
    """The users of a registry and what they have sent."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def create_token(self, user: str) -> str:
        """Make a token for `user`, who is created if new."""
        token = "hubctl_" + secrets.token_urlsafe(32)
        with self._db.write() as db:
            db.execute("INSERT OR IGNORE INTO users VALUES (?, ?, ?)", (user, now(), secrets.token_hex(4)))
            name = db.execute("SELECT name FROM users WHERE name = ?", (user,)).fetchone()["name"]
            db.execute("INSERT INTO tokens VALUES (?, ?, ?)", (_digest(token), name, now()))
        return token

    def user_of(self, token: str) -> str:
        """Whose token this is.

        Raises:
            AccessError: nobody's.
        """
        with self._db.read() as db:
            row = db.execute("SELECT user FROM tokens WHERE digest = ?", (_digest(token),)).fetchone()
        if row is None:
            # Stock clients look for exactly this text: any other 401 they take for a missing repository.
            raise AccessError("Invalid credentials in Authorization header")
        return str(row["user"])

    def xet_epoch(self, user: str) -> str:
        """A part of the address that `user`'s Xet uploads go to.

        Clients remember, per address, which chunks they need not send again; a new epoch makes them forget.
        """
        with self._db.read() as db:
            row = db.execute("SELECT xet_epoch FROM users WHERE name = ?", (user,)).fetchone()
        return str(row["xet_epoch"])

    def renew_xet_epoch(self, user: str) -> None:
        """Give `user`'s Xet uploads a new address: what went to the old one is not all here any more."""
        with self._db.write() as db:
            db.execute("UPDATE users SET xet_epoch = ? WHERE name = ?", (secrets.token_hex(4), user))

    def record_held(self, user: str, kind: str, digest: str) -> None:
        """Remember that `user` has sent the blob or xorb `digest`."""
        with self._db.write() as db:
            db.execute("INSERT OR IGNORE INTO held VALUES (?, ?, ?)", (user, kind, digest))

    def holds(self, user: str, kind: str, digest: str) -> bool:
        """Whether `user` has sent the blob or xorb `digest`."""
        sent = "SELECT 1 FROM held WHERE user = ? AND kind = ? AND digest = ?"
        with self._db.read() as db:
            return db.execute(sent, (user, kind, digest)).fetchone() is not None

    def may_use_blob(self, user: str, sha256: str) -> bool:
        """Whether `user` may put the blob into a commit: it was sent, or can be read anyway."""
        readable = (
            "SELECT 1 FROM files JOIN repos ON repos.id = files.repo"
            " WHERE files.sha256 = ? AND (repos.private = 0 OR repos.owner = ?) LIMIT 1"
        )
        if self.holds(user, "blob", sha256):
            return True
        with self._db.read() as db:
            return db.execute(readable, (sha256, user)).fetchone() is not None


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


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()
