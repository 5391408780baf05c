"""Files onto a registry in one commit, on top of the commit that they were compared with, or not at all."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

from hubctl.errors import ConflictError, InputError, NotFoundError, UnavailableError
from hubctl.hub.client import Hub
from hubctl.hub.faults import translated
from hubctl.hub.preflight import changes
from hubctl.hub.records import Pushed, RepoInfo
from hubctl.hub.session import PAUSES_S, is_drop
from hubctl.refs import AdapterRef

KEPT = frozenset({".gitattributes"})
"""The registry's own, in every repository."""


def upload(
    hub: Hub,
    files: Mapping[str, Path],
    repo_id: str,
    *,
    parent: str | None,
    message: str,
    private: bool = False,
) -> Pushed:
    """Make `repo_id` hold exactly `files` (path in the repository: local file), in one commit after `parent`.

    The repository is created when it is missing (`parent` is None then). Files that it has and `files` lacks
    are deleted: a re-trained adapter must not leave the old one's weights beside its own. A connection that
    drops is no end: what arrived is found again, files by their hashes and a commit by what it holds.

    Raises:
        AccessError: no token, a wrong one, or no right to write there.
        ConflictError: somebody pushed in between, or `private` was asked for a public repository.
        UnavailableError: the registry is gone.
    """
    hub.need_token(f"push to {repo_id}")
    for pause_s in PAUSES_S:
        try:
            return _upload(hub, files, repo_id, parent, message, private)
        except UnavailableError as error:
            if not is_drop(error.__cause__):
                raise
            time.sleep(pause_s)
    return _upload(hub, files, repo_id, parent, message, private)


def _upload(
    hub: Hub, files: Mapping[str, Path], repo_id: str, parent: str | None, message: str, private: bool
) -> Pushed:
    before = _open(hub, repo_id, private)
    untouched = parent is None and set(before.files) <= KEPT
    if before.commit != parent and not untouched:
        if set(changes(files, before.files).values()) <= {"same"}:  # of an attempt whose answer was lost
            return _pushed(hub, before.repo_id, before.commit, unchanged=False)
        raise ConflictError(
            f"{repo_id} has a commit {before.commit[:12]} by somebody else since it was compared",
            hint="hubctl push --dry-run shows what a push would change now",
        )
    commit = _commit(hub, files, before, message)
    return _pushed(hub, repo_id, commit, unchanged=commit == before.commit)


def _open(hub: Hub, repo_id: str, private: bool) -> RepoInfo:
    try:
        before = hub.repo_info(AdapterRef(repo_id))
    except NotFoundError:
        with translated(repo_id, hub):
            hub.api().create_repo(repo_id, private=private, exist_ok=True)
        before = hub.repo_info(AdapterRef(repo_id))
    if private and not before.private:
        raise ConflictError(f"{repo_id} exists already and is public", hint="choose another --repo")
    return before


def _commit(hub: Hub, files: Mapping[str, Path], before: RepoInfo, message: str) -> str:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    stale = set(before.files) - set(files) - KEPT
    with translated(before.repo_id, hub):
        try:
            commit = hub.api().create_commit(
                before.repo_id,
                [
                    *(CommitOperationAdd(name, path) for name, path in sorted(files.items())),
                    *(CommitOperationDelete(name) for name in sorted(stale)),
                ],
                commit_message=message,
                parent_commit=before.commit,
            )
        except (HfHubHTTPError, HFValidationError, json.JSONDecodeError):
            raise
        except ValueError as error:
            raise InputError(f"the registry refuses README.md: {error}") from error
        except (RuntimeError, ConnectionError, TimeoutError) as error:  # of hf_xet: the transfer itself
            raise UnavailableError(
                f"the upload to {hub} broke off: {error}",
                hint="push again; what arrived is not sent twice",
            ) from error
    return str(commit.oid)


def _pushed(hub: Hub, repo_id: str, commit: str, *, unchanged: bool) -> Pushed:
    return Pushed(repo_id=repo_id, commit=commit, url=f"{hub.endpoint}/{repo_id}", unchanged=unchanged)
