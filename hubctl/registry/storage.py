"""Routes about what histories take up: their large files, making them smaller, copying them for nothing."""

from __future__ import annotations

from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from hubctl.errors import AccessError, InputError
from hubctl.registry import quota
from hubctl.registry.blobs import check_digest
from hubctl.registry.faults import RepoExists
from hubctl.registry.wire import (
    next_link,
    number,
    open_repo,
    private_field,
    read_json,
    repo_id_field,
    repo_url,
    require_caller,
    require_writer,
    services_of,
    text_field,
)

FILES_PER_PAGE = 1000


async def squash(request: Request) -> Response:
    """`POST .../super-squash/{branch}`: one commit in place of the branch's history."""
    branch = request.path_params["branch"]
    title = text_field(await read_json(request), "message", f"Squash the history of {branch}")

    def run() -> str:
        repo = open_repo(request, write=True)
        return services_of(request).repos.squash(repo, branch, title, user=require_writer(request))

    return JSONResponse({"commitOid": await run_in_threadpool(run)})


def list_large(request: Request) -> Response:
    """`GET .../lfs-files`: every large file in the history, with one of its names."""
    repo = open_repo(request, write=True)
    limit = min(max(number(request, "limit", FILES_PER_PAGE), 1), FILES_PER_PAGE)
    after = request.query_params.get("cursor", "")
    found = services_of(request).repos.large_files(repo, after=after, limit=limit + 1)
    shown: list[dict[str, Any]] = [
        {
            "fileOid": file.sha256,
            "oid": file.sha256,
            "filename": file.path,
            "size": file.size_bytes,
            "pushedAt": pushed_at,
        }
        for file, pushed_at in found[:limit]
    ]
    more = len(found) > limit
    return JSONResponse(shown, headers=next_link(request, cursor=shown[-1]["oid"]) if more else None)


async def delete_large(request: Request) -> Response:
    """`POST .../lfs-files/batch`: write the history anew, without some large files."""
    deletions: Any = (await read_json(request)).get("deletions")
    if not isinstance(deletions, dict) or not isinstance(deletions.get("sha"), list):
        raise InputError("field 'deletions' must have a list 'sha'", param="deletions")
    digests = {check_digest(digest) for digest in deletions["sha"]}
    if deletions.get("rewriteHistory") is not True:
        raise InputError(
            "large files are only deleted together with the commits that name them",
            hint="set rewriteHistory (rewrite_history=True)",
        )

    def run() -> int:
        return services_of(request).repos.drop_large(open_repo(request, write=True), digests)

    return JSONResponse({"rewrittenCommits": await run_in_threadpool(run)})


async def duplicate(request: Request) -> Response:
    """`POST .../duplicate`: another repository with the same history."""
    fields = await read_json(request)
    owner, name = repo_id_field(fields, "repository")
    private = private_field(fields)

    def run() -> Response:
        user = require_writer(request)
        source = open_repo(request)
        hidden = source.private if private is None else private
        try:
            made = services_of(request).repos.duplicate(source, owner, name, user=user, private=hidden)
        except RepoExists as error:
            url = repo_url(request, source.kind, error.repo_id)
            return JSONResponse({"error": error.message, "url": url}, status_code=409)
        return JSONResponse({"url": repo_url(request, made.kind, made.id)})

    return await run_in_threadpool(run)


def list_own(request: Request) -> Response:
    """`GET .../settings/repositories`, of the caller or of an organisation: what each repository keeps."""
    caller = require_caller(request)
    services = services_of(request)
    owner = request.path_params.get("org", caller.user)
    orgs = (org for org, _ in services.accounts.orgs_of(caller.user))
    names = {name.lower(): name for name in (caller.user, *orgs)}
    if owner.lower() not in names:
        raise AccessError(f"you are not in {owner}", forbidden=True)
    with services.db.read() as db:
        rows = quota.by_repo(db, names[owner.lower()])
    total = sum(row["bytes"] for row in rows)
    return JSONResponse(
        [
            {
                "id": row["id"],
                "type": row["kind"],
                "visibility": "private" if row["private"] else "public",
                "updatedAt": row["updated_at"],
                "storage": row["bytes"],
                "storagePercent": row["bytes"] / total if total else 0,
            }
            for row in rows
        ]
    )
