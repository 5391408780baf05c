"""Faults that the Hub's protocol tells apart, and the HTTP status of every fault.

    NotFoundError
     ├── RepoNotFound       no such repository, or one that the caller may not see
     ├── RevisionNotFound   no such branch, tag or commit
     └── EntryNotFound      no such file; knows the commit that was searched
    ConflictError
     ├── RepoExists         knows the repository that is in the way
     └── StaleParent        the branch moved on since the client looked
    IntegrityError
     └── LostFile           the registry's own storage is damaged
    AccessError
     └── QuotaExceeded      the owner of a repository keeps as much as allowed

The names of the "not found" classes are the Hub's own error codes, sent as `X-Error-Code`.
"""

from __future__ import annotations

from hubctl.errors import (
    AccessError,
    ConflictError,
    HubctlError,
    InputError,
    IntegrityError,
    NotFoundError,
)


class RepoNotFound(NotFoundError):
    """No such repository, or a private one that is not for the caller."""


class RevisionNotFound(NotFoundError):
    """The repository has no such branch, tag or commit."""


class EntryNotFound(NotFoundError):
    """The commit has no such file; clients remember the absence per `commit`."""

    def __init__(self, message: str, *, commit: str | None = None) -> None:
        super().__init__(message)
        self.commit = commit


class RepoExists(ConflictError):
    """A repository of that name exists; `repo_id` is spelled as it was created."""

    def __init__(self, message: str, *, repo_id: str) -> None:
        super().__init__(message)
        self.repo_id = repo_id


class StaleParent(ConflictError):
    """The client's parent commit is no longer the head of the branch."""


class LostFile(IntegrityError):
    """A file that a commit names is not whole in the registry's storage any more."""


class QuotaExceeded(AccessError):
    """The owner of a repository would keep more bytes than allowed."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint, forbidden=True)


# Clients retry 408, 429 and 5xx five times, so a permanent fault must never be one of these.
_STATUS: dict[type[HubctlError], int] = {
    InputError: 400,
    IntegrityError: 400,
    AccessError: 401,
    NotFoundError: 404,
    ConflictError: 409,
    StaleParent: 412,
    LostFile: 410,
    HubctlError: 400,
}


def status_of(error: HubctlError) -> int:
    """HTTP status of a fault: its own class's, else the nearest ancestor's."""
    if isinstance(error, AccessError) and error.forbidden:
        return 403
    return next(_STATUS[cls] for cls in type(error).__mro__ if cls in _STATUS)
