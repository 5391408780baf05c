"""Which paths files of a repository may have. Pure.

They land on strangers' disks, so a path must be harmless on every system: the rules are the strictest of
POSIX, Windows, macOS and git. The registry asks before it stores a byte of a commit, the client before it
sends or writes one.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from hubctl.errors import InputError

MAX_PATH_BYTES = 1024
MAX_SEGMENT_BYTES = 240
_WINDOWS_DEVICES = frozenset(
    {"con", "prn", "aux", "nul", *(f"com{n}" for n in range(10)), *(f"lpt{n}" for n in range(10))}
)
_GIT_FOLDERS = frozenset({".git", "git~1"})
_BIDI_CONTROLS = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def check_path(path: str) -> str:
    """Return `path` if a file may lie there in a repository, else raise InputError saying why not."""
    reason = _path_fault(path)
    if reason:
        raise InputError(f"path {path!r} is not allowed: {reason}", param="path")
    return path


def check_no_collisions(paths: Iterable[str]) -> None:
    """Raise InputError if two of `paths` are one file, or a file and a folder, on some system.

    Windows and macOS fold case, macOS also Unicode forms: of two such files one would overwrite the other.
    """
    files: dict[str, str] = {}
    folders: dict[str, str] = {}
    for path in paths:
        key = _folded(path)
        if key in files:
            raise InputError(
                f"paths {files[key]!r} and {path!r} are the same file on some systems", param="path"
            )
        files[key] = path
        parts = path.split("/")
        for depth in range(1, len(parts)):
            folder = "/".join(parts[:depth])
            first = folders.setdefault(_folded(folder), folder)
            if first != folder:
                raise InputError(
                    f"folders {first!r} and {folder!r} are the same on some systems", param="path"
                )
    for key, path in files.items():
        if key in folders:
            raise InputError(f"path {path!r} is both a file and a folder", param="path")


def _path_fault(path: str) -> str | None:
    if not path:
        return "it is empty"
    try:
        encoded = path.encode("utf-8")
    except UnicodeEncodeError:
        return "it is not valid Unicode"
    if len(encoded) > MAX_PATH_BYTES:
        return f"it is longer than {MAX_PATH_BYTES} bytes"
    if has_control(path):
        return "it has control characters"
    if "\\" in path:
        return "it has a backslash"
    if ":" in path:
        return "it has a colon (a drive or stream on Windows)"
    if path.startswith("/"):
        return "it is absolute"
    return next((fault for part in path.split("/") if (fault := _segment_fault(part))), None)


def _segment_fault(part: str) -> str | None:
    if not part:
        return "it has an empty segment"
    if part in {".", ".."}:
        return f"it has a segment {part!r}"
    # NTFS drops trailing dots and spaces, so '.git.' would still be '.git' there.
    if part.rstrip(". ").casefold() in _GIT_FOLDERS:
        return "'.git' belongs to git"
    if part != part.rstrip(". "):
        return "a segment ends in a dot or a space"
    if part.split(".", 1)[0].rstrip(" ").casefold() in _WINDOWS_DEVICES:
        return f"{part!r} is a device name on Windows"
    if len(part.encode()) > MAX_SEGMENT_BYTES:
        return f"a segment is longer than {MAX_SEGMENT_BYTES} bytes"
    return None


def has_control(text: str) -> bool:
    """Whether `text` has characters that control a terminal, a line or the direction of writing."""
    return any(unicodedata.category(char) in {"Cc", "Zl", "Zp"} or char in _BIDI_CONTROLS for char in text)


def _folded(path: str) -> str:
    return unicodedata.normalize("NFC", path.casefold())
