"""Object ids as git computes them. Pure.

The registry keeps no git objects, but names its files, folders and commits by the ids git would give them:
ids then follow from the content alone, and clients can check small files against them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping


def blob_id(data: bytes) -> str:
    """Id of a file with this content."""
    return _object_id("blob", data)


def pointer(sha256: str, size_bytes: int) -> bytes:
    """The text that stands in git for a large file."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size_bytes}\n".encode()


def tree_ids(blobs: Mapping[str, str]) -> dict[str, str]:
    """Id of every folder that holds the files `blobs` (path to blob id); the root's key is ''."""
    children: dict[str, list[tuple[str, str, str]]] = {"": []}  # folder -> (sort key, mode and name, id)
    for path, oid in blobs.items():
        folder, _, name = path.rpartition("/")
        children.setdefault(folder, []).append((name, f"100644 {name}", oid))
        while folder:
            folder = folder.rpartition("/")[0]
            children.setdefault(folder, [])
    ids: dict[str, str] = {}
    # Deepest first, so that a folder's own folders have their ids when it needs them.
    for folder in sorted(children, key=lambda path: -path.count("/") - bool(path)):
        body = b"".join(
            head.encode() + b"\0" + bytes.fromhex(oid) for _, head, oid in sorted(children[folder])
        )
        ids[folder] = _object_id("tree", body)
        if folder:
            parent, _, name = folder.rpartition("/")
            # git sorts folders as if their names ended in a slash.
            children[parent].append((name + "/", f"40000 {name}", ids[folder]))
    return ids


def commit_id(*, tree: str, parent: str | None, author: str, time_s: int, message: str) -> str:
    """Id of a commit; `time_s` is Unix time."""
    who = f"{author} <{author}@users.noreply.hubctl> {time_s} +0000"
    lines = [
        f"tree {tree}",
        *([f"parent {parent}"] if parent else []),
        f"author {who}",
        f"committer {who}",
        "",
        message,
    ]
    return _object_id("commit", "\n".join(lines).encode())


def _object_id(kind: str, body: bytes) -> str:
    return hashlib.sha1(f"{kind} {len(body)}\0".encode() + body, usedforsecurity=False).hexdigest()
