"""Who has sent which bytes: naming a hash opens nothing by itself."""

from __future__ import annotations

import secrets

from hubctl.errors import AccessError
from hubctl.registry.accounts import READABLE
from hubctl.registry.database import Database


class Uploads:
    """What each user has sent, and where their Xet clients send it to."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def xet_epoch(self, user: str) -> str:
        """A part of the address that `user`'s Xet uploads go to.

        Clients remember, per address, which chunks they need not send again; a new epoch makes them forget.
        """
        with self._db.read() as db:
            row = db.execute("SELECT xet_epoch FROM users WHERE name = ?", (user,)).fetchone()
        if row is None:
            raise _gone(user)
        return str(row["xet_epoch"])

    def renew_xet_epoch(self, user: str) -> None:
        """Give `user`'s Xet uploads a new address: what went to the old one is not all here any more."""
        with self._db.write() as db:
            db.execute("UPDATE users SET xet_epoch = ? WHERE name = ?", (secrets.token_hex(4), user))

    def forget_xorb(self, digest: str) -> None:
        """Make everybody who sent a xorb send their chunks again: it is not here any more."""
        with self._db.write() as db:
            gone = "DELETE FROM held WHERE kind = 'xorb' AND digest = ? RETURNING user"
            holders = [row["user"] for row in db.execute(gone, (digest,)).fetchall()]
        for user in holders:
            self.renew_xet_epoch(user)

    def record_held(self, user: str, kind: str, digest: str) -> None:
        """Remember that `user` has sent the blob or xorb `digest`."""
        with self._db.write() as db:
            known = "INSERT OR IGNORE INTO held SELECT name, ?, ? FROM users WHERE name = ?"
            db.execute(known, (kind, digest, user))
            if not db.execute("SELECT 1 FROM users WHERE name = ?", (user,)).fetchone():
                raise _gone(user)

    def holds(self, user: str, kind: str, digest: str) -> bool:
        """Whether `user` has sent the blob or xorb `digest`."""
        sent = "SELECT 1 FROM held WHERE user = ? AND kind = ? AND digest = ?"
        with self._db.read() as db:
            return db.execute(sent, (user, kind, digest)).fetchone() is not None

    def may_use_blob(self, user: str, sha256: str) -> bool:
        """Whether `user` may put the blob into a commit: it was sent, or can be read anyway."""
        readable = (
            "SELECT 1 FROM files JOIN repos ON repos.id = files.repo"
            f" WHERE files.sha256 = ? AND {READABLE} LIMIT 1"
        )
        if self.holds(user, "blob", sha256):
            return True
        with self._db.read() as db:
            return db.execute(readable, (sha256, user)).fetchone() is not None


def _gone(user: str) -> AccessError:
    # Links that carry their own permission may outlive the user that they were made for.
    return AccessError(f"there is no user {user} any more", forbidden=True)
