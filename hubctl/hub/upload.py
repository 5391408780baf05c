"""Files onto a registry in one commit, on top of the commit that they were compared with, or not at all.

Large files go to huggingface.co through Xet, in chunks that it may have already. Other registries get them by
plain LFS: adapters share no chunks, one reading less is quicker, progress can be told; and hf_xet takes the
address to write to from the registry, `local://` folders of this disk among them, without asking anybody.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, BinaryIO, cast

from hubctl.errors import ConflictError, HubctlError, InputError, NotFoundError, UnavailableError
from hubctl.hub.client import Hub
from hubctl.hub.faults import explain, translated
from hubctl.hub.preflight import changes
from hubctl.hub.records import Pushed, RepoInfo
from hubctl.hub.session import PAUSES_S
from hubctl.hub.tokens import HF_URL
from hubctl.refs import AdapterRef

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

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
    hashes: Mapping[Path, Future[bytes]] = MappingProxyType({}),
    on_bytes: Callable[[int], None] = lambda count: None,
) -> Pushed:
    """Make `repo_id` hold exactly `files` (path in the repository: local file), in one commit after `parent`.

    The repository is created when it is missing (`parent` is None then), and deleted again when the registry
    refuses the files. Files that it has and `files` lacks are deleted: a re-trained adapter must not leave
    the old one's weights beside its own. A connection that drops is no end: what arrived is found again,
    files by their hashes and a commit by what it holds.
    `hashes` are sha256 digests, or on their way to be; `on_bytes` hears of what is sent of large files.

    Raises:
        AccessError: no token, a wrong one, or no right to write there.
        ConflictError: somebody pushed in between, or `private` was asked for a public repository.
        UnavailableError: the registry is gone.
    """
    hub.need_token(f"push to {repo_id}")
    for pause_s in PAUSES_S:
        try:
            return _upload(hub, files, repo_id, parent, message, private, hashes, on_bytes)
        except UnavailableError:  # it was there when the files were compared
            time.sleep(pause_s)
    return _upload(hub, files, repo_id, parent, message, private, hashes, on_bytes)


class Counted(io.BufferedIOBase):
    """A file that tells how many bytes were read of it; open only from its first byte to its last."""

    def __init__(self, path: Path, on_bytes: Callable[[int], None]) -> None:
        self._path, self._on_bytes = path, on_bytes
        self._position = 0
        self._file: BinaryIO | None = None

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """The position in bytes."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a position; returns it."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._path.stat().st_size}[whence]
        self._position = start + offset
        self.close_file()
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        """The next `size` bytes, or all that are left."""
        if self._file is None:
            self._file = self._path.open("rb")
            self._file.seek(self._position)
        data = self._file.read(-1 if size is None else size)
        self._position += len(data)
        self._on_bytes(len(data))
        if size is None or len(data) < size or size < 0:
            self.close_file()
        return data

    def close_file(self) -> None:
        """Let go of the file; the next read opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _upload(
    hub: Hub,
    files: Mapping[str, Path],
    repo_id: str,
    parent: str | None,
    message: str,
    private: bool,
    hashes: Mapping[Path, Future[bytes]],
    on_bytes: Callable[[int], None],
) -> Pushed:
    before, created = _open(hub, repo_id, private)
    untouched = parent is None and set(before.files) <= KEPT
    if before.commit != parent and not untouched:
        if set(changes(files, before.files).values()) <= {"same"}:  # of an attempt whose answer was lost
            return _pushed(hub, before.repo_id, before.commit, unchanged=False)
        raise ConflictError(
            f"{repo_id} has a commit {before.commit[:12]} by somebody else since it was compared",
            hint="hubctl push --dry-run shows what a push would change now",
        )
    with _withdrawn(hub, before) if created else nullcontext():
        commit = _commit(hub, files, before, message, hashes, on_bytes)
    return _pushed(hub, repo_id, commit, unchanged=commit == before.commit)


def _open(hub: Hub, repo_id: str, private: bool) -> tuple[RepoInfo, bool]:
    """The repository, and whether it was created for this."""
    created = False
    try:
        before = hub.repo_info(AdapterRef(repo_id))
    except NotFoundError:
        try:
            with translated(repo_id, hub):
                hub.api().create_repo(repo_id, private=private)
            created = True
        except ConflictError:
            pass  # somebody else has just made it: whose commit comes first, decides
        before = hub.repo_info(AdapterRef(repo_id))
    if private and not before.private:
        raise ConflictError(f"{repo_id} exists already and is public", hint="choose another --repo")
    return before, created


@contextmanager
def _withdrawn(hub: Hub, made: RepoInfo) -> Iterator[None]:
    """Around the first commit to a repository made for it: if it is refused, no empty one is left."""
    try:
        yield
    except UnavailableError:
        raise  # it may have been taken all the same
    except HubctlError as error:
        try:
            if hub.repo_info(AdapterRef(made.repo_id)).commit == made.commit:
                hub.delete(made.repo_id)
        except HubctlError:
            left = f"hubctl remove {made.repo_id} (made for this push, and empty)"
            error.hint = f"{error.hint}; then {left}" if error.hint else left
        raise


def _commit(
    hub: Hub,
    files: Mapping[str, Path],
    before: RepoInfo,
    message: str,
    hashes: Mapping[Path, Future[bytes]],
    on_bytes: Callable[[int], None],
) -> str:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    def addition(name: str, path: Path) -> CommitOperationAdd:
        operation = CommitOperationAdd(name, path)
        if path in hashes:
            operation.upload_info.sha256 = hashes[path].result()
        if hub.endpoint != HF_URL:  # the library sends whatever is open already by plain LFS
            operation.path_or_fileobj = cast(BinaryIO, Counted(path, on_bytes))
        return operation

    stale = set(before.files) - set(files) - KEPT
    with translated(before.repo_id, hub):
        try:
            commit = hub.api().create_commit(
                before.repo_id,
                [
                    *(addition(name, path) for name, path in sorted(files.items())),
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
            if (answer := _answer_behind(error)) is not None:
                explain(answer, before.repo_id, hub)
            raise UnavailableError(
                f"the upload to {hub} broke off: {error}",
                hint="push again; what arrived is not sent twice",
            ) from error
    return str(commit.oid)


def _answer_behind(error: BaseException) -> HfHubHTTPError | None:
    """The registry's own word, where huggingface_hub has hidden it behind an error without one."""
    from huggingface_hub.errors import HfHubHTTPError

    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, HfHubHTTPError):
        cause = cause.__cause__
    return cause


def _pushed(hub: Hub, repo_id: str, commit: str, *, unchanged: bool) -> Pushed:
    return Pushed(repo_id=repo_id, commit=commit, url=f"{hub.endpoint}/{repo_id}", unchanged=unchanged)
