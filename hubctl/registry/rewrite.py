"""Histories made anew, in the caller's transaction: as one commit, without some large files, elsewhere."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection
from dataclasses import replace

from hubctl.registry import commits
from hubctl.registry.blobs import FileStore
from hubctl.registry.commits import Change


def squash(
    db: sqlite3.Connection, blobs: FileStore, *, repo: int, branch: str, head: str, title: str, user: str
) -> str:
    """Make `branch` one commit with the files of `head`; returns its id.

    The commits before it stay until `gc`, as far as no other branch or tag has them.
    """
    tree = commits.files(db, repo, head).values()
    change = Change(title=title, operations=tuple(replace(file, changed_in="") for file in tree))
    return commits.append(db, blobs, repo=repo, branch=branch, head=None, change=change, user=user)


def drop_large(db: sqlite3.Connection, blobs: FileStore, *, repo: int, digests: Collection[str]) -> int:
    """Write every commit anew that has one of the large files `digests`, or follows one that has.

    Branches and tags move to the new commits, the old ones are gone. Returns how many commits changed.
    """
    new_ids: dict[str, str] = {}
    # From the roots, so that a commit's parent has its new id already.
    rows = db.execute(
        """WITH RECURSIVE line(oid, depth) AS (
             SELECT oid, 0 FROM commits WHERE repo = ?1 AND parent IS NULL UNION ALL
             SELECT commits.oid, depth + 1 FROM line JOIN commits ON commits.parent = line.oid
             WHERE repo = ?1
           )
           SELECT commits.* FROM line JOIN commits USING (oid) WHERE repo = ?1 ORDER BY depth""",
        (repo,),
    ).fetchall()
    for row in rows:
        before = commits.files(db, repo, row["oid"])
        after = {p: f for p, f in before.items() if not (f.lfs and f.sha256 in digests)}
        parent = new_ids.get(row["parent"], row["parent"])
        if len(after) == len(before) and parent == row["parent"]:
            continue
        # A file that this commit itself brought is now the work of the commit in its place.
        origin = {**new_ids, row["oid"]: ""}
        tree = {p: replace(f, changed_in=origin.get(f.changed_in, f.changed_in)) for p, f in after.items()}
        new_ids[row["oid"]] = commits.write(db, repo, commits.commit_of(row), parent=parent, tree=tree)
    for old, new in new_ids.items():
        db.execute("UPDATE refs SET oid = ? WHERE repo = ? AND oid = ?", (new, repo, old))
    db.executemany(
        "DELETE FROM commits WHERE repo = ? AND oid = ?",
        ((repo, old) for old in new_ids.keys() - set(new_ids.values())),
    )
    head = db.execute(
        "SELECT oid FROM refs WHERE repo = ? AND kind = 'branch' AND name = 'main'", (repo,)
    ).fetchone()
    commits.index(db, blobs, repo, commits.files(db, repo, head["oid"]))
    return len(new_ids)


def duplicate(db: sqlite3.Connection, *, source: int, target: int) -> None:
    """Give the repository `target` (which has none) the history, branches, tags and card of `source`."""
    for table, columns in (
        ("commits", "oid, parent, tree, author, title, description, created_at, source"),
        ("files", "oid, path, sha256, size, git_id, lfs, changed_in"),
        ("refs", "kind, name, oid"),
        ("repo_tags", "tag, position"),
    ):
        db.execute(
            f"INSERT INTO {table} (repo, {columns}) SELECT ?, {columns} FROM {table} WHERE repo = ?",
            (target, source),
        )
    db.execute(
        "UPDATE repos SET (pipeline_tag, library_name, card) ="
        " (SELECT pipeline_tag, library_name, card FROM repos WHERE id = ?) WHERE id = ?",
        (source, target),
    )
