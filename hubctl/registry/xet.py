"""The write side of Xet: stock clients upload large files as chunks; here they become files again.

Since huggingface_hub 1.20 clients no longer ask whether a server has Xet: without these routes they cannot
upload at all. Downloads stay plain HTTP, because no answer ever mentions a Xet hash.
Chunk and xorb hashes are checked when a xorb arrives, the file's sha256 when it is put together. The file and
range hashes of a shard are not: the sha256 covers the same bytes.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from hubctl.errors import AccessError, HubctlError, InputError
from hubctl.registry.auth import bearer_token
from hubctl.registry.blobs import Draft, FileStore, check_digest
from hubctl.registry.services import Services
from hubctl.registry.wire import base_url, flag, open_repo, read_body, require_writer, services_of
from hubctl.registry.xet_format import (
    MAX_SHARD_BYTES,
    MAX_XORB_BYTES,
    Chunk,
    ShardFile,
    parse_shard,
    parse_xorb,
    unpack_chunk,
    xorb_hash,
)

TOKEN_LIFETIME_S = 3600
_PURPOSE = "xet upload"


def write_token(request: Request) -> Response:
    """`GET /api/{kind}/{repo}/xet-write-token/{revision}`: where to upload, and with what token."""
    refuse_pull_request(request)
    repo = open_repo(request, write=True)
    user = require_writer(request)
    services = services_of(request)
    services.repos.check_room(repo, {"": 1})  # how much will come, nobody says here
    token = services.signer.sign(_PURPOSE, lifetime_s=TOKEN_LIFETIME_S, user=user)
    expires = services.signer.check(_PURPOSE, token)["expires_s"]
    # Clients keep, per address, a list of chunks they need not send again. Two users of one machine must
    # not share it, as each may only refer to their own; and it must not outlive the xorbs (epoch).
    url = f"{base_url(request)}/xet/{services.uploads.xet_epoch(user)}/{user}"
    return JSONResponse(
        {"casUrl": url, "accessToken": token, "exp": expires},
        headers={"X-Xet-Cas-Url": url, "X-Xet-Access-Token": token, "X-Xet-Token-Expiration": str(expires)},
    )


async def upload_xorb(request: Request) -> Response:
    """`POST .../v1/xorbs/default/{hash}`: keep a xorb, once its content has the hash it is named by."""
    user = _uploader(request)
    digest = check_digest(request.path_params["hash"])
    services = services_of(request)
    with services.xorbs.draft() as draft:
        async for data in request.stream():
            draft.write(data)
            if draft.size_bytes > MAX_XORB_BYTES:
                raise InputError(f"xorb is longer than {MAX_XORB_BYTES} bytes")
        inserted = await run_in_threadpool(_keep_xorb, services, draft, digest, user)
    return JSONResponse({"was_inserted": inserted})


async def upload_shard(request: Request) -> Response:
    """`POST .../v1/shards` and `/v2/shards`: put the shard's files together and keep them as blobs.

    Version 2 answers with events. Clients show people the text of an error event, not that of a status 400.
    """
    user = _uploader(request)
    events = request.url.path.endswith("/v2/shards")
    data = await read_body(request, MAX_SHARD_BYTES)
    try:
        await run_in_threadpool(_rebuild_files, services_of(request), data, user)
    except HubctlError as error:
        if not events:
            raise
        return _event({"type": "error", "message": error.message, "retryable": False})
    return _event({"type": "result", "result": 1}) if events else JSONResponse({"result": 1})


def refuse_pull_request(request: Request) -> None:
    """Say early that a commit cannot become a pull request here, before anything is uploaded."""
    if flag(request, "create_pr"):
        raise InputError("this registry has no pull requests: push to a branch", hint="leave out create_pr")


def rebuild(file: ShardFile, xorbs: FileStore, draft: Draft) -> None:
    """Write the content that `file` describes into `draft`.

    Raises:
        InputError: a xorb is missing, or has no such chunks, or they are not of the size promised.
    """
    known: dict[str, list[Chunk]] = {}
    for term in file.terms:
        # One xorb open at a time: a large file has more of them than a process may have open.
        with _mapped(xorbs.path(term.xorb)) as data:
            if term.xorb not in known:
                known[term.xorb] = parse_xorb(data)
            chunks = known[term.xorb][term.first : term.last]
            if len(chunks) < term.last - term.first:
                raise InputError(f"xorb {term.xorb} has {len(known[term.xorb])} chunks, not {term.last}")
            if sum(chunk.size_bytes for chunk in chunks) != term.size_bytes:
                raise InputError(f"chunks {term.first} to {term.last} of xorb {term.xorb} have another size")
            for chunk in chunks:
                draft.write(unpack_chunk(chunk, data))


def _event(event: dict[str, Any]) -> Response:
    return Response(json.dumps(event) + "\n", media_type="application/x-ndjson")


def _uploader(request: Request) -> str:
    services = services_of(request)
    token = bearer_token(request.headers.get("authorization"))
    if token is None:
        raise AccessError("this needs a Xet token")
    user = str(services.signer.check(_PURPOSE, token)["user"])
    if request.path_params["user"] != user:
        raise AccessError("this upload address belongs to another user", forbidden=True)
    if request.path_params["epoch"] != services.uploads.xet_epoch(user):
        raise InputError("this upload address is out of date: start the upload again")
    return user


def _keep_xorb(services: Services, draft: Draft, digest: str, user: str) -> bool:
    with _mapped(draft.path) as data:
        actual = xorb_hash(data, parse_xorb(data))
    if actual != digest:
        raise InputError(f"xorb named {digest} has the hash {actual}")
    inserted = services.xorbs.size(digest) is None
    draft.publish(digest)  # also over an old one: these bytes were just checked, those long ago
    services.uploads.record_held(user, "xorb", digest)
    return inserted


def _rebuild_files(services: Services, shard: bytes, user: str) -> None:
    for file in parse_shard(shard):
        here = services.blobs.size(file.sha256) == file.size_bytes
        if here and services.uploads.holds(user, "blob", file.sha256):
            services.blobs.touch(file.sha256)
            continue
        for xorb in {term.xorb for term in file.terms}:
            if not services.uploads.holds(user, "xorb", xorb) or services.xorbs.size(xorb) is None:
                # The client believes it sent this: the registry lost it, or is an older copy of itself.
                services.uploads.renew_xet_epoch(user)
                raise InputError(f"xorb {xorb} of {user} is not here any more: start the upload again")
            services.xorbs.touch(xorb)
        # A shard of some kilobytes can describe terabytes: the same chunks over and over.
        services.blobs.check_fits(file.size_bytes)
        with services.blobs.draft() as draft:
            rebuild(file, services.xorbs, draft)
            draft.publish_sha256(file.sha256)
        services.uploads.record_held(user, "blob", file.sha256)


@contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap]:
    with path.open("rb") as stream:
        if path.stat().st_size == 0:
            raise InputError("xorb is empty")
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield data
