"""Routes about what a history takes up: its large files, and making it smaller."""

from __future__ import annotations

from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from hubctl.errors import InputError
from hubctl.registry.blobs import check_digest
from hubctl.registry.wire import (
    next_link,
    number,
    open_repo,
    read_json,
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
