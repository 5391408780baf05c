"""A registry, through huggingface_hub; its errors become ours, here as in `upload` and `undo`, by `faults`.

Everything is passed explicitly (endpoint, token, time limits), so that neither the environment nor a login
for another endpoint leaks into a call.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hubctl.adapter.card import first_base_model
from hubctl.adapter.header import MAX_HEADER_BYTES
from hubctl.errors import (
    AccessError,
    ConflictError,
    IntegrityError,
    NotFoundError,
    UnavailableError,
)
from hubctl.hub.faults import explain, login_command, translated, understood, unreachable
from hubctl.hub.records import (
    AdapterInfo,
    AdapterSummary,
    Digest,
    FileInfo,
    Pushed,
    RepoInfo,
    pick_weights,
)
from hubctl.hub.session import prepare, time_limits
from hubctl.refs import AdapterRef, PinnedRef

if TYPE_CHECKING:
    import httpx2
    from huggingface_hub import HfApi, ModelInfo

RefKind = Literal["tag", "branch"]

DOWNLOAD_TRIES = 3
CHUNK_BYTES = 1 << 20
HEADER_READ_BYTES = 256 << 10
"""Asked for at once: the whole header of all but the largest adapters."""
MAX_UNHASHED_BYTES = 32 << 20
"""Largest weights file that is fetched only to learn its sha256, where the registry does not state it."""


@dataclass(frozen=True, slots=True)
class Hub:
    """One registry, as one user. Safe to use from several threads."""

    endpoint: str
    token: str | None = field(repr=False)
    name: str

    def whoami(self) -> str:
        """The name that the token belongs to.

        Raises:
            AccessError: there is no token, or the registry refuses it.
        """
        self.need_token("say who you are")
        with self._translated("whoami"):
            return str(self.api().whoami()["name"])

    def need_token(self, purpose: str) -> None:
        """Raise `AccessError`, naming the command to type, when there is no token."""
        if not self.token:
            raise AccessError(f"no token for {self} to {purpose}", hint=login_command(self))

    def repo_info(self, ref: AdapterRef) -> RepoInfo:
        """The repository `ref` at the commit it points to now: files with their hashes, and the card.

        Raises:
            NotFoundError: no such repository or revision, or one that this token may not see.
        """
        with self._translated(str(ref)), understood(self):
            found = self.api().model_info(
                ref.repo_id, revision=ref.revision, files_metadata=True, timeout=time_limits()
            )
            info = RepoInfo(
                repo_id=found.id,
                revision=ref.revision or "main",
                commit=str(found.sha or ""),
                files={
                    s.rfilename: FileInfo(
                        size_bytes=int((s.lfs.size if s.lfs else s.size) or 0),
                        sha256=s.lfs.sha256 if s.lfs else None,
                        git_sha1=None if s.lfs else s.blob_id,
                    )
                    for s in found.siblings or ()
                },
                card=_card(found),
                task=found.pipeline_tag,
                tags=tuple(map(str, found.tags or ())),
                private=bool(found.private),
                updated=found.last_modified,
            )
        if not info.commit:
            raise NotFoundError(
                f"{ref.repo_id} on {self} is empty", hint=f"hubctl push DIR --repo {ref.repo_id}"
            )
        return info

    def adapter_info(self, ref: AdapterRef) -> AdapterInfo:
        """The adapter `ref`, resolved: every cache is keyed by the `pinned` that this returns.

        Raises:
            NotFoundError: no such repository or revision.
            AdapterError: the repository holds no adapter in safetensors.
        """
        return self.pin(self.repo_info(ref))

    def pin(self, info: RepoInfo) -> AdapterInfo:
        """The adapter in the repository `info`, pinned; see `adapter_info`."""
        weights = pick_weights(info)
        sha256 = info.files[weights].sha256 or self._hash_remote(info, weights)
        return AdapterInfo(
            **{name: getattr(info, name) for name in RepoInfo.__dataclass_fields__},
            weights_file=weights,
            pinned=PinnedRef(info.repo_id, info.revision, info.commit, sha256),
        )

    def models(
        self, *, search: str | None, author: str | None, tags: Sequence[str], limit: int | None
    ) -> Iterator[AdapterSummary]:
        """What the registry lists, the latest first; fetched page by page, as far as it is read."""
        self._reach()
        with self._translated("the listing"), understood(self):
            for model in self.api().list_models(
                search=search,
                author=author,
                filter=list(tags) or None,
                sort="last_modified",
                limit=limit,
                expand=[
                    "author",
                    "cardData",
                    "lastModified",
                    "pipeline_tag",
                    "private",
                    "sha",
                    "tags",
                    "usedStorage",
                ],
            ):
                card = _card(model)
                trigger = card.get("instance_prompt")
                yield AdapterSummary(
                    repo_id=model.id,
                    base_model=first_base_model(card),
                    task=model.pipeline_tag,
                    trigger=trigger if isinstance(trigger, str) else None,
                    updated=model.last_modified,
                    size_bytes=model.used_storage,
                    commit=model.sha,
                    private=bool(model.private),
                    tags=tuple(model.tags or ()),
                )

    def check_write(self, repo_id: str, *, must_exist: bool = False) -> None:
        """Raise `AccessError` when this token may not write to `repo_id`, which may be missing yet."""
        try:
            with self._translated(repo_id):
                self.api().auth_check(repo_id, write=True)
        except NotFoundError:
            # To be created; or a registry that does not know the question, and will say so later.
            if must_exist:
                self.repo_info(AdapterRef(repo_id))

    def delete(self, repo_id: str) -> None:
        """Delete a repository with its history; see `undo` for what a registry of hubctl keeps of it."""
        self.need_token(f"delete {repo_id}")
        with self._translated(repo_id):
            self.api().delete_repo(repo_id)

    def check_move(self, old_id: str, new_id: str) -> None:
        """See that a repository may be moved, as far as the registry tells.

        Raises:
            NotFoundError, AccessError: there is no such repository, or this token may not change it.
            ConflictError: there is one of the new name.
        """
        self.need_token(f"move {old_id}")
        self.check_write(old_id, must_exist=True)
        try:
            there = self.repo_info(AdapterRef(new_id)).repo_id
        except NotFoundError:
            return
        if there.lower() != old_id.lower():
            raise ConflictError(f"there is a repository {there}", hint=f"hubctl move {old_id} ANOTHER/NAME")

    def move(self, old_id: str, new_id: str) -> None:
        """Give a repository another name, or another owner; its commits keep their ids.

        Raises:
            ConflictError: there is a repository of the new name.
        """
        self.need_token(f"move {old_id}")
        with self._translated(old_id):
            self.api().move_repo(old_id, new_id)

    def refs(self, repo_id: str, kind: RefKind) -> dict[str, str]:
        """A repository's tags or branches: the commit of each name."""
        with self._translated(repo_id):
            found = self.api().list_repo_refs(repo_id)
        return {ref.name: ref.target_commit for ref in (found.tags if kind == "tag" else found.branches)}

    def check_ref_free(self, repo_id: str, kind: RefKind, name: str) -> None:
        """Raise `ConflictError` if the repository has a tag or branch of this name."""
        self.need_token(f"change {repo_id}")
        if (there := self.refs(repo_id, kind).get(name)) is not None:
            raise ConflictError(
                f"{repo_id} has a {kind} '{name}' at {there[:12]}",
                hint=f"hubctl {kind} {repo_id} {name} --delete, then make it again",
            )

    def add_ref(self, ref: AdapterRef, kind: RefKind, name: str) -> str:
        """Make a tag or branch at `ref` (main by default); returns the commit.

        Raises:
            ConflictError: there is one of this name.
        """
        self.check_ref_free(ref.repo_id, kind, name)
        with self._translated(str(ref)):
            if kind == "tag":
                self.api().create_tag(ref.repo_id, tag=name, revision=ref.revision)
            else:
                self.api().create_branch(ref.repo_id, branch=name, revision=ref.revision)
        return self.refs(ref.repo_id, kind)[name]

    def delete_ref(self, repo_id: str, kind: RefKind, name: str) -> None:
        """Take a tag or branch away; the commit stays as long as another name leads to it."""
        self.need_token(f"change {repo_id}")
        with self._translated(f"{kind} '{name}' of {repo_id}"):
            if kind == "tag":
                self.api().delete_tag(repo_id, tag=name)
            else:
                self.api().delete_branch(repo_id, branch=name)

    def download(
        self, info: RepoInfo, path: str, target: Path, *, on_bytes: Callable[[int], None] = lambda count: None
    ) -> None:
        """Stream one file of `info`'s commit to `target`, checking size and hash on the way.

        What `target` holds already is taken for the file's beginning, left by a download that was stopped:
        only the rest is asked for, and if the whole turns out wrong, all of it again. A broken connection is
        resumed where it stopped. `on_bytes` hears of every chunk, and of what was there.

        Raises:
            IntegrityError: what arrives is not what the registry promised; `target` is removed.
            UnavailableError: the registry is gone; what has arrived stays for the next try.
        """
        size = info.files[path].size_bytes
        if target.exists() and target.stat().st_size > size:
            target.unlink()  # nothing of this file
        kept = target.stat().st_size if target.exists() else 0
        try:
            self._complete(info, path, target, on_bytes)
        except IntegrityError:
            target.unlink(missing_ok=True)
            if not kept:
                raise
            on_bytes(-size)
            self.download(info, path, target, on_bytes=on_bytes)

    def _complete(self, info: RepoInfo, path: str, target: Path, on_bytes: Callable[[int], None]) -> None:
        digest = Digest(info.files[path], path)
        with target.open("a+b") as file:
            file.seek(0)
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
                on_bytes(len(chunk))
            for chunk in self._stream(info, path, info.files[path].size_bytes, start=file.tell()):
                digest.update(chunk)
                file.write(chunk)
                on_bytes(len(chunk))
        digest.check(f"{info.repo_id}@{info.commit[:12]}")

    def safetensors_header(self, info: RepoInfo, path: str) -> bytes:
        """The first bytes of a safetensors file, up to its tensors, by one range request, or two.

        A length that is no header's is handed on as it is: whoever reads the bytes refuses it.
        """
        size = info.files[path].size_bytes
        head = self._range(info, path, 0, min(HEADER_READ_BYTES, size)) if size else b""
        length = int.from_bytes(head[:8], "little")
        end = 8 + length
        if len(head) < end <= size and length <= MAX_HEADER_BYTES:
            head += self._range(info, path, len(head), end)
        return head[:end]

    def __str__(self) -> str:
        return f"{self.name} ({self.endpoint})"

    def api(self) -> HfApi:
        """huggingface_hub's own client for this registry, as this user."""
        prepare()
        from huggingface_hub import HfApi

        # False, not None: None would send the login of another endpoint.
        return HfApi(endpoint=self.endpoint, token=self.token or False, library_name="hubctl")

    # -- inside

    def _reach(self) -> None:
        """Fail now if nobody answers: huggingface_hub retries a listing for half a minute otherwise."""
        prepare()
        from huggingface_hub.utils._http import get_session

        with self._translated("the listing"):
            get_session().head(self.endpoint)

    def _hash_remote(self, info: RepoInfo, path: str) -> str:
        size = info.files[path].size_bytes
        if size > MAX_UNHASHED_BYTES:
            raise IntegrityError(f"{self} states no sha256 for {path} ({size:,} bytes)")
        digest = hashlib.sha256()
        for chunk in self._stream(info, path, size):
            digest.update(chunk)
        return digest.hexdigest()

    def _range(self, info: RepoInfo, path: str, start: int, end: int) -> bytes:
        """Bytes `start` to `end` (exclusive) of a file, and no more, whatever the server would send."""
        got = b""
        with (
            self._translated(f"{info.repo_id}/{path}"),
            self._open(info, path, wanted=f"bytes={start}-{end - 1}") as response,
        ):
            if start and response.status_code != 206:
                raise UnavailableError(f"{self} does not send parts of files", hint="pull it whole")
            for chunk in response.iter_bytes(CHUNK_BYTES >> 4):
                got += chunk
                if len(got) >= end - start:
                    break
        if len(got) < end - start:
            raise IntegrityError(f"{path} of {info.repo_id} ends after {start + len(got):,} bytes")
        return got[: end - start]

    def _stream(self, info: RepoInfo, path: str, size_bytes: int, *, start: int = 0) -> Iterator[bytes]:
        """The bytes of a file from `start`, resumed after a broken connection; never beyond `size_bytes`."""
        import httpx2

        done, tries = start, 0
        while done < size_bytes or not size_bytes:
            try:
                with self._open(info, path, wanted=f"bytes={done}-" if done else None) as response:
                    # A server that sends no parts sends it all: what is here is let pass.
                    for chunk in _after(
                        done if response.status_code != 206 else 0, response.iter_bytes(CHUNK_BYTES)
                    ):
                        done += len(chunk)
                        if done > size_bytes:
                            raise IntegrityError(
                                f"{path} of {info.repo_id} is longer than {size_bytes:,} bytes"
                            )
                        yield chunk
                return
            except (httpx2.NetworkError, httpx2.RemoteProtocolError, httpx2.ReadTimeout) as error:
                tries += 1
                if tries == DOWNLOAD_TRIES:
                    unreachable(error, self)
                time.sleep(0.2 * tries)
            except httpx2.HTTPError as error:
                unreachable(error, self)

    @contextmanager
    def _open(self, info: RepoInfo, path: str, *, wanted: str | None) -> Iterator[httpx2.Response]:
        prepare()
        from huggingface_hub import hf_hub_url
        from huggingface_hub.errors import HfHubHTTPError
        from huggingface_hub.utils._headers import build_hf_headers
        from huggingface_hub.utils._http import get_session, hf_raise_for_status

        url = hf_hub_url(info.repo_id, path, revision=info.commit, endpoint=self.endpoint)
        headers = build_hf_headers(token=self.token or False, library_name="hubctl")
        headers["Accept-Encoding"] = "identity"  # hashes are of the bytes as stored
        if wanted:
            headers["Range"] = wanted
        with get_session().stream("GET", url, headers=headers) as response:
            if response.status_code >= 400:
                response.read()
                try:
                    hf_raise_for_status(response)
                except HfHubHTTPError as error:
                    explain(error, f"{info.repo_id}/{path}", self)
            yield response

    def _translated(self, what: str) -> AbstractContextManager[None]:
        return translated(what, self)


def _after(count: int, chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The chunks without their first `count` bytes."""
    for chunk in chunks:
        skipped = min(count, len(chunk))
        count -= skipped
        if skipped < len(chunk):
            yield chunk[skipped:]


def _card(model: ModelInfo) -> dict[str, Any]:
    data: dict[str, Any] = model.card_data.to_dict() if model.card_data else {}  # type: ignore[no-untyped-call]
    return data


__all__ = ["AdapterInfo", "AdapterSummary", "FileInfo", "Hub", "Pushed", "RepoInfo"]
