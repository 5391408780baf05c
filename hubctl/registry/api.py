"""Routes of the Hub's API: identity, repositories, revisions, commits."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from hubctl.errors import InputError
from hubctl.registry import listing
from hubctl.registry.blobs import check_digest
from hubctl.registry.card import read_front_matter
from hubctl.registry.commits import Change, Delete, File, put_large, put_regular
from hubctl.registry.download import entries_of
from hubctl.registry.faults import RepoExists, RepoNotFound
from hubctl.registry.lfs import MAX_REGULAR_BYTES
from hubctl.registry.repo import MAIN, Repo
from hubctl.registry.services import Services
from hubctl.registry.wire import (
    KINDS,
    commit_json,
    flag,
    kind_field,
    next_link,
    number,
    open_repo,
    parse_json,
    private_field,
    read_fields,
    read_json,
    read_lines,
    refs_json,
    repo_id_field,
    repo_json,
    repo_url,
    require_caller,
    require_writer,
    services_of,
    size_field,
    text_field,
    user_of,
)
from hubctl.registry.xet import refuse_pull_request

MAX_COMMIT_LINE_BYTES = MAX_REGULAR_BYTES * 3 // 2
"""Base64 makes four bytes of three; the rest is for the path."""
COMMITS_PER_PAGE = 50


# -- identity ------------------------------------------------------------------------------------


def whoami(request: Request) -> Response:
    """`GET /api/whoami-v2`."""
    caller = require_caller(request)
    token = {"displayName": caller.label, "role": caller.scope}
    orgs = [
        {"type": "org", "name": org, "fullname": org, "roleInOrg": role}
        for org, role in services_of(request).accounts.orgs_of(caller.user)
    ]
    shown = {
        "type": "user",
        "name": caller.user,
        "fullname": caller.user,
        "orgs": orgs,
        "auth": {"type": "access_token", "accessToken": token},
    }
    soon = caller.expires_soon(datetime.now(UTC))
    # Stock clients show such a header as a warning.
    headers = {"X-HF-Warning": f"token; this token expires at {caller.expires_at}"} if soon else None
    return JSONResponse(shown, headers=headers)


def auth_check(request: Request) -> Response:
    """`GET .../auth-check` and `.../auth-check/write`: 200 if the caller may."""
    open_repo(request, write=request.url.path.endswith("/write"))
    return JSONResponse({})


async def validate_card(request: Request) -> Response:
    """`POST /api/validate-yaml`: whether a README's YAML header can be read."""
    content = text_field(await read_json(request), "content")
    try:
        data = await run_in_threadpool(read_front_matter, content)
    except InputError as error:
        return JSONResponse({"errors": [{"message": error.message}], "warnings": []}, status_code=400)
    warnings = [] if data else [{"message": "empty or missing yaml metadata in repo card"}]
    return JSONResponse({"errors": [], "warnings": warnings})


# -- repositories --------------------------------------------------------------------------------


async def create_repo(request: Request) -> Response:
    """`POST /api/repos/create`."""
    fields = await read_json(request)
    kind, name = kind_field(fields), text_field(fields, "name")
    private = private_field(fields) or False
    if "/" in name:
        owner, name = repo_id_field(fields, "name")
    else:
        owner = text_field(fields, "organization", "")

    def create() -> Response:
        user = require_writer(request)
        try:
            repo = services_of(request).repos.create(kind, owner or user, name, user=user, private=private)
        except RepoExists as error:
            url = repo_url(request, kind, error.repo_id)
            return JSONResponse({"error": error.message, "url": url}, status_code=409)
        return JSONResponse({"url": repo_url(request, kind, repo.id), "name": repo.id})

    return await run_in_threadpool(create)


async def delete_repo(request: Request) -> Response:
    """`DELETE /api/repos/delete`."""
    fields = await read_json(request)
    kind, name = kind_field(fields), text_field(fields, "name")
    if "/" in name:
        owner, name = repo_id_field(fields, "name")
    else:
        owner = text_field(fields, "organization", "")

    def delete() -> None:
        user = require_writer(request)
        repos = services_of(request).repos
        repos.delete(repos.open_to_write(kind, owner or user, name, user=user), user=user)

    await run_in_threadpool(delete)
    return JSONResponse({})


def list_removed(request: Request) -> Response:
    """`GET /api/repos/removed`, this registry's own: what the caller may restore, the latest first."""
    found = services_of(request).repos.removed(user=require_caller(request).user)
    return JSONResponse(
        [
            {
                "type": one.kind,
                "id": one.id,
                "private": one.private,
                "removedAt": one.removed_at,
                "removedBy": one.removed_by,
            }
            for one in found
        ]
    )


async def restore_repo(request: Request) -> Response:
    """`POST /api/repos/restore`, this registry's own: undo a removal."""
    fields = await read_json(request)
    kind = kind_field(fields)
    owner, name = repo_id_field(fields, "name")

    def restore() -> None:
        user = require_writer(request)
        services_of(request).repos.restore(kind, owner, name, user=user)

    await run_in_threadpool(restore)
    return JSONResponse({"url": repo_url(request, kind, f"{owner}/{name}")})


async def move_repo(request: Request) -> Response:
    """`POST /api/repos/move`: rename."""
    fields = await read_json(request)
    kind = kind_field(fields)
    source, target = repo_id_field(fields, "fromRepo"), repo_id_field(fields, "toRepo")

    def move() -> None:
        user = require_writer(request)
        repos = services_of(request).repos
        repos.move(repos.open_to_write(kind, *source, user=user), *target, user=user)

    await run_in_threadpool(move)
    return JSONResponse({})


async def update_settings(request: Request) -> Response:
    """`PUT .../settings`: public or private."""
    fields = await read_json(request)
    private = private_field(fields)
    if fields.get("gated", False) is not False:
        raise InputError("this registry has no gated repositories: make it private", param="gated")

    def update() -> None:
        repo = open_repo(request, write=True)
        if private is not None:
            services_of(request).repos.set_private(repo, private)

    await run_in_threadpool(update)
    return JSONResponse({"private": private})


def repo_info(request: Request) -> Response:
    """`GET /api/{kind}/{repo}` and `.../revision/{revision}`."""
    repo = open_repo(request)
    repos = services_of(request).repos
    oid = repos.resolve(repo, request.path_params.get("revision", MAIN))
    files = repos.files(repo, oid).values()
    return JSONResponse(repo_json(repo, sha=oid, files=files, sizes=flag(request, "blobs")))


def list_repos(request: Request) -> Response:
    """`GET /api/{kind}`: search, a page at a time."""
    params = request.query_params
    services = services_of(request)
    query = listing.Query(
        kind=KINDS[request.path_params["kind"]],
        user=user_of(request),
        search=params.get("search", ""),
        author=params.get("author", ""),
        # Clients repeat the parameter, browsers join with commas.
        tags=[tag for value in params.getlist("filter") for tag in value.split(",") if tag],
        pipeline_tag=params.get("pipeline_tag", ""),
        sort=params.get("sort", "lastModified"),
        limit=number(request, "limit", listing.MAX_PAGE),
        cursor=params.get("cursor", ""),
    )
    found, cursor = listing.find(services.db, query)
    full = flag(request, "full") or bool({"sha", "usedStorage"} & set(params.getlist("expand")))
    shown = [_listed(services, repo, full=full) for repo in found]
    return JSONResponse(shown, headers=next_link(request, cursor=cursor) if cursor else None)


# -- revisions -----------------------------------------------------------------------------------


def list_refs(request: Request) -> Response:
    """`GET .../refs`."""
    return JSONResponse(refs_json(services_of(request).repos.refs(open_repo(request))))


def list_commits(request: Request) -> Response:
    """`GET .../commits/{revision}`, newest first."""
    repo = open_repo(request)
    repos = services_of(request).repos
    oid = repos.resolve(repo, request.path_params["revision"])
    page, limit = number(request, "p", 0), min(max(number(request, "limit", COMMITS_PER_PAGE), 1), 1000)
    found = repos.history(repo, oid, skip=page * limit, limit=limit + 1)
    link = next_link(request, p=str(page + 1)) if len(found) > limit else None
    return JSONResponse([commit_json(commit) for commit in found[:limit]], headers=link)


async def create_branch(request: Request) -> Response:
    """`POST .../branch/{branch}`."""
    at = text_field(await read_json(request), "startingPoint", MAIN)

    def create() -> None:
        repo = open_repo(request, write=True)
        services_of(request).repos.create_ref(repo, "branch", request.path_params["branch"], at)

    await run_in_threadpool(create)
    return JSONResponse({})


async def create_tag(request: Request) -> Response:
    """`POST .../tag/{revision}`."""
    name = text_field(await read_json(request), "tag")

    def create() -> None:
        repo = open_repo(request, write=True)
        services_of(request).repos.create_ref(repo, "tag", name, request.path_params["revision"])

    await run_in_threadpool(create)
    return JSONResponse({})


def delete_branch(request: Request) -> Response:
    """`DELETE .../branch/{branch}`."""
    services_of(request).repos.delete_ref(
        open_repo(request, write=True), "branch", request.path_params["branch"]
    )
    return JSONResponse({})


def delete_tag(request: Request) -> Response:
    """`DELETE .../tag/{tag}`."""
    services_of(request).repos.delete_ref(open_repo(request, write=True), "tag", request.path_params["tag"])
    return JSONResponse({})


# -- commits -------------------------------------------------------------------------------------


async def commit(request: Request) -> Response:
    """`POST .../commit/{branch}`: operations as JSON lines; all of them happen, or none."""
    refuse_pull_request(request)
    repo = await run_in_threadpool(lambda: open_repo(request, write=True))
    user = await run_in_threadpool(require_writer, request)
    services = services_of(request)
    header: dict[str, Any] = {}
    operations: list[File | Delete] = []
    async for line in read_lines(request, MAX_COMMIT_LINE_BYTES):
        entry = parse_json(line)
        key, value = entry.get("key"), entry.get("value")
        if not isinstance(value, dict):
            raise InputError("each line of a commit must be an object with 'key' and 'value'")
        if key == "header":
            header = value
        else:
            operations.append(await run_in_threadpool(_operation, services, key, value, user))
    change = Change(
        title=text_field(header, "summary"),
        description=text_field(header, "description", ""),
        parent=text_field(header, "parentCommit", "") or None,
        operations=tuple(operations),
    )
    branch = request.path_params["revision"]
    oid = await run_in_threadpool(lambda: services.repos.commit(repo, branch, change, user=user))
    url = f"{repo_url(request, repo.kind, repo.id)}/commit/{oid}"
    return JSONResponse({"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})


async def paths_info(request: Request) -> Response:
    """`POST .../paths-info/{revision}`: entries of some paths; those that do not exist are left out."""
    fields = await read_fields(request)
    paths = fields.get("paths", [])
    paths = [paths] if isinstance(paths, str) else paths
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise InputError("field 'paths' must be a list of paths", param="paths")
    expand = str(fields.get("expand", [""])).strip("[]'").lower() == "true"
    return JSONResponse(await run_in_threadpool(entries_of, request, paths, expand))


def no_such_repo(request: Request) -> Response:
    """Repositories without an owner, as the Hub has some: none here, said so that clients understand it."""
    del request
    raise RepoNotFound("repositories are called OWNER/NAME here")


def _listed(services: Services, repo: Repo, *, full: bool) -> Any:
    if not full:
        return repo_json(repo)
    oid = services.repos.resolve(repo, MAIN)
    files = services.repos.files(repo, oid).values()
    shown = repo_json(repo, sha=oid, files=files)
    return {**shown, "usedStorage": sum(file.size_bytes for file in files)}


def _operation(services: Services, key: object, value: Mapping[str, Any], user: str) -> File | Delete:
    path = text_field(value, "path")
    if key == "deletedFile":
        return Delete(path=path, folder=False)
    if key == "deletedFolder":
        return Delete(path=path, folder=True)
    if key == "file":
        return put_regular(services.blobs, path, _content(value, path))
    if key == "lfsFile":
        sha256 = check_digest(value.get("oid"))
        size = services.blobs.size(sha256)
        # The same answer for "not here" and "not yours": a hash must not reveal what others have.
        if size is None or not services.uploads.may_use_blob(user, sha256):
            raise InputError(
                f"large file {path!r} ({sha256}) was not uploaded", hint="upload it, then commit again"
            )
        if value.get("size") is not None and size_field(value, "size") != size:
            raise InputError(f"large file {path!r} has {size} bytes, not {value['size']}")
        return put_large(path, sha256, size)
    raise InputError(f"unknown operation {str(key)[:40]!r} in a commit")


def _content(value: Mapping[str, Any], path: str) -> bytes:
    text = text_field(value, "content")
    if value.get("encoding", "utf-8") == "utf-8":
        data = text.encode()
    else:
        try:
            data = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError) as error:
            raise InputError(f"the content of {path!r} is not base64") from error
    if len(data) > MAX_REGULAR_BYTES:
        raise InputError(
            f"{path!r} has {len(data)} bytes: more than {MAX_REGULAR_BYTES} must be uploaded as large"
        )
    return data
