"""Everything a running registry holds, opened from its folder.

root/registry.db   users, repositories, commits (SQLite)
root/blobs/        contents of files, by sha256
root/xorbs/        what Xet clients uploaded, by xorb hash: later uploads refer back to it
root/lock          held by the one server of this folder
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path

from hubctl.registry.accounts import Accounts
from hubctl.registry.auth import Signer, open_database
from hubctl.registry.blobs import FileStore
from hubctl.registry.database import Database
from hubctl.registry.repo import Repositories
from hubctl.registry.uploads import Uploads


@dataclass(frozen=True, kw_only=True, slots=True)
class Services:
    """The parts that the routes are made of; all of them may be called from any thread."""

    db: Database
    accounts: Accounts
    uploads: Uploads
    repos: Repositories
    blobs: FileStore
    xorbs: FileStore
    signer: Signer

    def close(self) -> None:
        """Close the database; call when no request runs."""
        self.db.close()


def open_services(root: Path) -> Services:
    """Open the registry in `root`, creating what is missing."""
    db = open_database(root)
    blobs = FileStore(root / "blobs")
    return Services(
        db=db,
        accounts=Accounts(db),
        uploads=Uploads(db),
        repos=Repositories(db, blobs),
        blobs=blobs,
        xorbs=FileStore(root / "xorbs"),
        signer=Signer(_secret(db)),
    )


def _secret(db: Database) -> bytes:
    with db.write() as connection:
        connection.execute("INSERT OR IGNORE INTO meta VALUES ('secret', ?)", (secrets.token_hex(32),))
        row = connection.execute("SELECT value FROM meta WHERE key = 'secret'").fetchone()
    return bytes.fromhex(row["value"])
