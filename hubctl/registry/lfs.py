"""Large files the plain way (git-lfs batch, one PUT each), and the rule which files are large."""

from __future__ import annotations

import asyncio
import base64
import binascii
from typing import Any

import pathspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from hubctl.errors import HubctlError, InputError
from hubctl.paths import check_path
from hubctl.registry import multipart
from hubctl.registry.blobs import Draft, check_digest
from hubctl.registry.commits import is_large_by_name
from hubctl.registry.faults import status_of
from hubctl.registry.repo import Repo
from hubctl.registry.services import Services
from hubctl.registry.wire import (
    base_url,
    open_repo,
    parse_json,
    read_body,
    read_json,
    require_writer,
    services_of,
    size_field,
    text_field,
    url_prefix,
)
from hubctl.registry.xet import refuse_pull_request

MAX_REGULAR_BYTES = 10 * 1024 * 1024
MAX_GITIGNORE_BYTES = 64 * 1024
LINK_LIFETIME_S = 6 * 3600
SYNC_BYTES = 8 << 20
"""What arrived goes to the disk in such pieces while more comes: an upload does not end with a long wait."""
_MEDIA_TYPE = "application/vnd.git-lfs+json"
_PURPOSE = "lfs upload"


def is_large(path: str, size_bytes: int, sample: bytes) -> bool:
    """Whether a file goes to large storage: by its name, its size, or as its first bytes are not text."""
    return is_large_by_name(path) or size_bytes > MAX_REGULAR_BYTES or _is_binary(sample)


async def preupload(request: Request) -> Response:
    """`POST .../preupload/{revision}`: for each file, how to upload it and what is there now."""
    refuse_pull_request(request)
    fields = await read_json(request)
    return JSONResponse(await run_in_threadpool(_plan, request, fields))


async def batch(request: Request) -> Response:
    """`POST /{repo}.git/info/lfs/objects/batch`: for each object, where to PUT it; nothing if it is here."""
    fields = parse_json(await read_body(request))
    if fields.get("operation") != "upload":
        raise InputError("only uploads go through LFS here; download files by their /resolve/ address")
    objects, transfers = fields.get("objects"), fields.get("transfers")
    if not isinstance(objects, list):
        raise InputError("field 'objects' must be a list", param="objects")
    in_parts = isinstance(transfers, list) and "multipart" in transfers

    def answer() -> list[dict[str, Any]]:
        repo, user = open_repo(request, write=True), require_writer(request)
        return [_batch_entry(request, repo, user, entry, in_parts=in_parts) for entry in objects]

    shown = await run_in_threadpool(answer)
    # Which of the two it is, each object's own `chunk_size` says; clients look at nothing else.
    transfer = "multipart" if any(_is_in_parts(entry) for entry in shown) else "basic"
    return JSONResponse(
        {"transfer": transfer, "objects": shown, "hash_algo": "sha256"}, media_type=_MEDIA_TYPE
    )


async def upload(request: Request) -> Response:
    """`PUT /lfs/{signature}`: one object's bytes. The address is the permission: clients send no token."""
    services = services_of(request)
    permit = services.signer.check(_PURPOSE, request.path_params["signature"])
    with services.blobs.draft() as draft:
        synced, syncing = 0, None
        try:
            async for data in request.stream():
                draft.write(data)
                if draft.size_bytes > permit["size"]:
                    raise InputError(
                        f"object {permit['oid']} is longer than the {permit['size']} bytes announced"
                    )
                if draft.size_bytes - synced >= SYNC_BYTES and (syncing is None or syncing.done()):
                    synced, syncing = draft.size_bytes, asyncio.ensure_future(run_in_threadpool(draft.sync))
        finally:
            if syncing is not None:
                await syncing
        await run_in_threadpool(_keep, services, draft, permit)
    return Response(status_code=200)


async def verify(request: Request) -> Response:
    """`POST /{repo}.git/info/lfs/verify`: whether the object has arrived."""
    fields = parse_json(await read_body(request))
    oid, size = check_digest(fields.get("oid")), size_field(fields, "size")

    def check() -> None:
        open_repo(request, write=True)
        if services_of(request).blobs.size(oid) != size:
            raise InputError(f"object {oid} of {size} bytes has not arrived")

    await run_in_threadpool(check)
    return JSONResponse({}, media_type=_MEDIA_TYPE)


def _plan(request: Request, fields: dict[str, Any]) -> dict[str, Any]:
    repo = open_repo(request, write=True)
    services = services_of(request)
    oid = services.repos.resolve(repo, request.path_params["revision"])
    present = services.repos.files(repo, oid)
    entries = fields.get("files")
    if not isinstance(entries, list):
        raise InputError("field 'files' must be a list", param="files")
    ignored = _gitignore(services, fields, present.get(".gitignore"))
    plan = []
    for entry in entries:
        if not isinstance(entry, dict):
            raise InputError("each of 'files' must be an object", param="files")
        path = check_path(text_field(entry, "path"))
        large = is_large(path, size_field(entry, "size"), _sample(entry))
        there = present.get(path)
        plan.append(
            {
                "path": path,
                "uploadMode": "lfs" if large else "regular",
                "shouldIgnore": ignored.match_file(path),
                **({"oid": there.etag} if there else {}),
            }
        )
    return {"files": plan}


def _gitignore(services: Services, fields: dict[str, Any], present: Any) -> pathspec.GitIgnoreSpec:
    text = text_field(fields, "gitIgnore", "")
    if len(text) > MAX_GITIGNORE_BYTES:
        raise InputError(f".gitignore is longer than {MAX_GITIGNORE_BYTES} bytes")
    if not text and present is not None and present.size_bytes <= MAX_GITIGNORE_BYTES:
        text = services.blobs.path(present.sha256).read_bytes().decode("utf-8", "replace")
    try:
        return pathspec.GitIgnoreSpec.from_lines(text.splitlines())
    except ValueError as error:  # a pattern that git itself would skip; the library refuses it
        raise InputError(f".gitignore cannot be read: {error}") from error


def _sample(entry: dict[str, Any]) -> bytes:
    try:
        return base64.b64decode(text_field(entry, "sample", ""), validate=True)[:1024]
    except (binascii.Error, ValueError) as error:
        raise InputError("field 'sample' must be base64", param="sample") from error


def _is_binary(sample: bytes) -> bool:
    if b"\0" in sample:
        return True
    try:
        sample.decode()
    except UnicodeDecodeError as error:
        # A character cut in two by the end of the sample is still text.
        return not (error.reason == "unexpected end of data" and error.end == len(sample))
    return False


def _is_in_parts(entry: dict[str, Any]) -> bool:
    return "header" in entry.get("actions", {}).get("upload", {})


def _batch_entry(request: Request, repo: Repo, user: str, entry: Any, *, in_parts: bool) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    try:
        if not isinstance(entry, dict):
            raise InputError("each of 'objects' must be an object")
        oid, size = check_digest(entry.get("oid")), size_field(entry, "size")
        shown = {"oid": oid, "size": size}
        services = services_of(request)
        if services.blobs.size(oid) == size and services.uploads.may_use_blob(user, oid):
            services.blobs.touch(oid)
            return shown
        services.repos.check_room(repo, {oid: size})
        services.blobs.check_fits(size)
        base, part_bytes = base_url(request), request.app.state.limits.part_bytes
        if in_parts and size > part_bytes:
            upload = multipart.upload_action(
                services, base, user=user, oid=oid, size=size, part_bytes=part_bytes
            )
        else:
            permit = services.signer.sign(_PURPOSE, lifetime_s=LINK_LIFETIME_S, user=user, oid=oid, size=size)
            upload = {"href": f"{base}/lfs/{permit}"}
        shown["actions"] = {
            "upload": upload,
            "verify": {"href": f"{base}/{url_prefix(repo.kind)}{repo.id}.git/info/lfs/verify"},
        }
    except HubctlError as error:
        shown["error"] = {"code": status_of(error), "message": error.message}
    return shown


def _keep(services: Services, draft: Draft, permit: dict[str, Any]) -> None:
    if draft.size_bytes != permit["size"]:
        raise InputError(
            f"object {permit['oid']} has {draft.size_bytes} bytes, not the {permit['size']} announced"
        )
    draft.publish_sha256(permit["oid"])
    services.uploads.record_held(permit["user"], "blob", permit["oid"])
