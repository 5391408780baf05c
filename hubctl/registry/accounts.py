"""Users, organisations and tokens: who may do what."""

from __future__ import annotations

import hashlib
import secrets
import sqlite3
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from hubctl.errors import AccessError, ConflictError, InputError, NotFoundError
from hubctl.registry.database import Database, now, stamp
from hubctl.registry.names import check_user_name
from hubctl.registry.quota import used_bytes

Scope = Literal["read", "write"]
"""What a token, or a member of an organisation, may do."""

READABLE = "(repos.private = 0 OR repos.owner IN (SELECT owner FROM rights WHERE user = ?))"
"""SQL: whether the user (one parameter) may read a row of `repos`."""

MAX_LABEL_LENGTH = 80
_SOON = timedelta(days=7)


@dataclass(frozen=True, kw_only=True, slots=True)
class Caller:
    """Who sent a request, by a valid token."""

    user: str
    scope: Scope
    label: str
    expires_at: str | None

    def expires_soon(self, moment: datetime) -> bool:
        """Whether the token has less than a week left at a moment (with its time zone)."""
        return self.expires_at is not None and self.expires_at < stamp(moment + _SOON)


class Accounts:
    """The users and organisations of a registry."""

    def __init__(self, db: Database) -> None:
        self._db = db

    # -- tokens -----------------------------------------------------------------------------------

    def create_token(
        self, user: str, *, scope: Scope = "write", label: str = "token", expires_s: int | None = None
    ) -> str:
        """Make a token for `user`, who is created if new; valid for `expires_s` seconds, or until revoked.

        Raises:
            InputError: it is an organisation, or the label or time makes no sense.
        """
        if not label.isprintable() or not 0 < len(label) <= MAX_LABEL_LENGTH:
            raise InputError(f"a label has 1 to {MAX_LABEL_LENGTH} printable characters", param="label")
        # npm's client refuses any token that does not begin like the Hub's own.
        token = "hf_hubctl_" + secrets.token_urlsafe(32)
        with self._db.write() as db:
            row = _add(db, user, is_org=False)
            if row["is_org"]:
                raise InputError(
                    f"{row['name']} is an organisation: tokens belong to people",
                    hint=f"hubctl registry org join {row['name']} USER",
                )
            db.execute(
                "INSERT INTO tokens (digest, user, created_at, scope, label, expires_at)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                (_digest(token), row["name"], now(), scope, label, _expiry(expires_s)),
            )
        return token

    def caller(self, token: str) -> Caller:
        """Whose token this is, and what it allows.

        Raises:
            AccessError: nobody's, or it has expired.
        """
        with self._db.read() as db:
            row = db.execute("SELECT * FROM tokens WHERE digest = ?", (_digest(token),)).fetchone()
        # Stock clients look for exactly this text: any other 401 they take for a missing repository.
        refusal = "Invalid credentials in Authorization header"
        if row is None:
            raise AccessError(refusal)
        if row["expires_at"] is not None and row["expires_at"] <= now():
            raise AccessError(refusal, hint=f"the token expired at {row['expires_at']}")
        return Caller(user=row["user"], scope=row["scope"], label=row["label"], expires_at=row["expires_at"])

    def tokens(self, user: str | None = None) -> list[dict[str, Any]]:
        """All tokens, or those of one user, the oldest first; `id` begins their sha256 and opens nothing."""
        columns = "substr(digest, 1, 8) AS id, user, label, scope, created_at, expires_at"
        chosen = "?1 IS NULL OR user = ?1 COLLATE NOCASE"
        with self._db.read() as db:
            rows = db.execute(f"SELECT {columns} FROM tokens WHERE {chosen} ORDER BY created_at", (user,))
            return [dict(row) for row in rows]

    def revoke_token(self, token_id: str) -> str:
        """Forget the token with that id; returns whose it was.

        Raises:
            NotFoundError: there is none.
        """
        with self._db.write() as db:
            row = db.execute(
                "DELETE FROM tokens WHERE substr(digest, 1, 8) = ? RETURNING user", (token_id,)
            ).fetchone()
        if row is None:
            raise NotFoundError(f"there is no token {token_id!r}", hint="hubctl registry token list")
        return str(row["user"])

    # -- users and organisations ------------------------------------------------------------------

    def add(self, name: str, *, is_org: bool = False) -> None:
        """Create a user or an organisation.

        Raises:
            ConflictError: the name is taken.
            InputError: it is not allowed.
        """
        check_user_name(name)
        with self._db.write() as db:
            if row := _find(db, name):
                kind = "organisation" if row["is_org"] else "user"
                raise ConflictError(f"there is {kind} {row['name']} already")
            _add(db, name, is_org=is_org)

    def remove(self, name: str) -> None:
        """Forget a user with all tokens, or an organisation; what they removed cannot come back then.

        Raises:
            NotFoundError: there is none.
            ConflictError: repositories belong to it.
        """
        with self._db.write() as db:
            owner = _need(db, name)["name"]
            count = db.execute("SELECT COUNT(*) FROM repos WHERE owner = ?", (owner,)).fetchone()[0]
            if count:
                raise ConflictError(f"{owner} owns {count} repositories: move or delete them first")
            db.execute("DELETE FROM tokens WHERE user = ?", (owner,))
            # Whoever is given this name next has no claim on what was removed under it.
            db.execute("DELETE FROM repos WHERE id IN (SELECT repo FROM removed WHERE owner = ?)", (owner,))
            db.execute("DELETE FROM members WHERE user = ?1 OR org = ?1", (owner,))
            db.execute("DELETE FROM held WHERE user = ?", (owner,))
            db.execute("DELETE FROM users WHERE name = ?", (owner,))

    def set_member(self, org: str, user: str, role: Scope | None) -> None:
        """Let a user read or change all repositories of an organisation, or (None) no longer.

        Raises:
            NotFoundError: no such user or organisation, or the user is not in it.
        """
        with self._db.write() as db:
            to, who = _need(db, org), _need(db, user)
            if not to["is_org"] or who["is_org"]:
                raise InputError(f"{org} must be an organisation, and {user} a user")
            if role is not None:
                db.execute("INSERT OR REPLACE INTO members VALUES (?, ?, ?)", (to["name"], who["name"], role))
            elif not db.execute(
                "DELETE FROM members WHERE org = ? AND user = ?", (to["name"], who["name"])
            ).rowcount:
                raise NotFoundError(f"{who['name']} is not in {to['name']}")

    def orgs_of(self, user: str) -> list[tuple[str, Scope]]:
        """The organisations that a user is in, and as what."""
        with self._db.read() as db:
            rows = db.execute("SELECT org, role FROM members WHERE user = ? ORDER BY org", (user,))
            return [(row["org"], row["role"]) for row in rows]

    def set_quota(self, name: str, quota_bytes: int | None) -> None:
        """Limit what the repositories of a user or organisation keep; None is no limit.

        Raises:
            NotFoundError: there is none of that name.
        """
        with self._db.write() as db:
            owner = _need(db, name)["name"]
            db.execute("UPDATE users SET quota_bytes = ? WHERE name = ?", (quota_bytes, owner))

    def all(self, *, is_org: bool) -> list[dict[str, Any]]:
        """Users, or organisations with their members; what they keep, and may keep."""
        with self._db.read() as db:
            rows = db.execute(
                "SELECT name, created_at, (SELECT COUNT(*) FROM repos WHERE owner = users.name) AS repos,"
                " quota_bytes FROM users WHERE is_org = ? ORDER BY name",
                (is_org,),
            ).fetchall()
            members = db.execute("SELECT * FROM members ORDER BY user").fetchall()
            found = [{**dict(row), "used_bytes": used_bytes(db, row["name"])} for row in rows]
        for entry in found if is_org else ():
            entry["members"] = {m["user"]: m["role"] for m in members if m["org"] == entry["name"]}
        return found


def owner_called(db: sqlite3.Connection, name: str) -> str:
    """The owner of that name as it is spelled; an organisation with nobody in it, if there was none."""
    check_user_name(name)
    return str(_add(db, name, is_org=True)["name"])


def writer_to(db: sqlite3.Connection, owner: str, user: str) -> str:
    """The name of `owner` as it is spelled, if `user` may write to its repositories.

    Raises:
        AccessError: no such right.
    """
    row = db.execute(
        "SELECT owner FROM rights WHERE user = ? AND owner = ? COLLATE NOCASE AND role = 'write'",
        (user, owner),
    ).fetchone()
    if row is None:
        raise AccessError(f"{user} has no right to write to {owner}'s repositories", forbidden=True)
    return str(row["owner"])


def _add(db: sqlite3.Connection, name: str, *, is_org: bool) -> sqlite3.Row:
    db.execute(
        "INSERT OR IGNORE INTO users (name, created_at, xet_epoch, is_org) VALUES (?, ?, ?, ?)",
        (name, now(), secrets.token_hex(4), is_org),
    )
    return _need(db, name)


def _find(db: sqlite3.Connection, name: str) -> sqlite3.Row | None:
    row: sqlite3.Row | None = db.execute("SELECT * FROM users WHERE name = ?", (name,)).fetchone()
    return row


def _need(db: sqlite3.Connection, name: str) -> sqlite3.Row:
    row = _find(db, name)
    if row is None:
        raise NotFoundError(
            f"there is no user or organisation {name!r}", hint=f"hubctl registry user add {name}"
        )
    return row


def _expiry(seconds: int | None) -> str | None:
    if seconds is None:
        return None
    if not 0 < seconds < 100 * 366 * 86400:
        raise InputError(f"a token cannot expire in {seconds} seconds", param="expires")
    return stamp(datetime.now(UTC) + timedelta(seconds=seconds))


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()
