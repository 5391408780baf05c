"""Requests in, Hub-shaped JSON out: the protocol's spelling of what the registry knows."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any
from urllib.parse import parse_qs, urlencode

from starlette.requests import Request

from hubctl.errors import AccessError, InputError
from hubctl.registry import git
from hubctl.registry.accounts import Caller
from hubctl.registry.auth import bearer_token
from hubctl.registry.commits import Commit, File
from hubctl.registry.repo import Kind, Ref, Repo
from hubctl.registry.services import Services

MAX_JSON_BYTES = 16 * 1024 * 1024

KINDS: dict[str, Kind] = {"models": "model", "datasets": "dataset", "spaces": "space"}
"""URL segment to kind of repository."""


# -- requests ------------------------------------------------------------------------------------


def services_of(request: Request) -> Services:
    """The registry that serves this request."""
    services: Services = request.app.state.services
    return services


def base_url(request: Request) -> str:
    """Where clients reach this registry, without a slash at the end."""
    configured: str | None = request.app.state.base_url
    return configured or str(request.base_url).rstrip("/")


def user_of(request: Request) -> str | None:
    """The caller's name; None without a token.

    Raises:
        AccessError: there is a token, but it is wrong.
    """
    caller = caller_of(request)
    return caller.user if caller else None


def caller_of(request: Request) -> Caller | None:
    """Who the token says is calling; None without a token.

    Raises:
        AccessError: there is a token, but it is wrong.
    """
    token = bearer_token(request.headers.get("authorization"))
    return services_of(request).accounts.caller(token) if token else None


def require_caller(request: Request) -> Caller:
    """Who the token says is calling.

    Raises:
        AccessError: no token, or a wrong one.
    """
    caller = caller_of(request)
    if caller is None:
        raise AccessError("this needs a token: log in first")
    return caller


def require_writer(request: Request) -> str:
    """The caller's name.

    Raises:
        AccessError: no token, a wrong one, or one that may only read.
    """
    caller = require_caller(request)
    if caller.scope != "write":
        raise AccessError("this token may only read", hint="use one with the scope 'write'", forbidden=True)
    return caller.user


def open_repo(request: Request, *, write: bool = False) -> Repo:
    """The repository that the URL names, if the caller may read (or change) it."""
    params = request.path_params
    repos = services_of(request).repos
    way = repos.open_to_write if write else repos.open
    repo = way(KINDS[params.get("kind", "models")], params["owner"], params["name"], user=user_of(request))
    if write:
        require_writer(request)
    return repo


async def read_body(request: Request, limit_bytes: int = MAX_JSON_BYTES) -> bytes:
    """The whole body.

    Raises:
        InputError: it is longer than `limit_bytes`.
    """
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit_bytes:
            raise InputError(f"the request body is longer than {limit_bytes} bytes")
    return bytes(body)


async def read_json(request: Request) -> dict[str, Any]:
    """The body as a JSON object; an empty body is an empty object."""
    body = await read_body(request)
    return parse_json(body) if body.strip() else {}


async def read_fields(request: Request) -> dict[str, Any]:
    """The body as JSON or as a form, whichever it is; a form's values are lists."""
    if request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        body = await read_body(request)
        return dict(parse_qs(body.decode("utf-8", "replace"), max_num_fields=20_000))
    return await read_json(request)


async def read_lines(request: Request, limit_bytes: int) -> AsyncIterator[bytes]:
    """The body's non-empty lines, one at a time, so that a large body never is in memory as a whole.

    Raises:
        InputError: a line is longer than `limit_bytes`.
    """
    buffer = bytearray()
    async for chunk in request.stream():
        buffer += chunk
        *lines, rest = buffer.split(b"\n") if b"\n" in chunk else [buffer]
        for line in lines:
            if line.strip():
                yield bytes(line)
        buffer = rest
        if len(buffer) > limit_bytes:
            raise InputError(f"a line of the request body is longer than {limit_bytes} bytes")
    if buffer.strip():
        yield bytes(buffer)


def parse_json(text: bytes) -> dict[str, Any]:
    """A JSON object.

    Raises:
        InputError: it is not one.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"the request body is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise InputError("the request body must be a JSON object")
    return value


def text_field(fields: Mapping[str, Any], name: str, default: str | None = None) -> str:
    """A field that must be text.

    Raises:
        InputError: it is missing without a default, something else, or not valid Unicode.
    """
    value = fields.get(name)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        raise InputError(f"field {name!r} must be text", param=name)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"field {name!r} is not valid Unicode", param=name) from error
    return value


def size_field(fields: Mapping[str, Any], name: str) -> int:
    """A field that must be a number of bytes."""
    value = fields.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**50:
        raise InputError(f"field {name!r} must be a number of bytes", param=name)
    return value


def kind_field(fields: Mapping[str, Any]) -> Kind:
    """The kind of repository in the field `type`; a model if it says none."""
    asked = fields.get("type") or "model"
    for kind in KINDS.values():
        if kind == asked:
            return kind
    raise InputError(f"repositories of type {str(asked)[:40]!r} are not kept here", param="type")


def private_field(fields: Mapping[str, Any]) -> bool | None:
    """Whether the fields ask for a private repository; None if they say nothing. Old and new spelling."""
    if (visibility := fields.get("visibility")) is not None:
        if visibility not in ("private", "public"):
            raise InputError(f"visibility must be 'private' or 'public', not {str(visibility)[:40]!r}")
        return bool(visibility == "private")
    private = fields.get("private")
    if private is not None and not isinstance(private, bool):
        raise InputError("field 'private' must be true or false", param="private")
    return private


def repo_id_field(fields: Mapping[str, Any], name: str) -> tuple[str, str]:
    """A field `owner/name`, split."""
    owner, slash, repo = text_field(fields, name).partition("/")
    if not slash or not owner or not repo:
        raise InputError(f"field {name!r} must be OWNER/NAME", param=name)
    return owner, repo


def flag(request: Request, name: str) -> bool:
    """Whether the query asks for something: present, and not spelled as a no."""
    return request.query_params.get(name, "false").lower() not in {"false", "0", "no", ""}


def number(request: Request, name: str, default: int) -> int:
    """A non-negative number of the query."""
    text = request.query_params.get(name, str(default))
    if not text.isascii() or not text.isdigit() or len(text) > 15:
        raise InputError(f"query parameter {name!r} must be a number", param=name)
    return int(text)


# -- answers -------------------------------------------------------------------------------------


def url_prefix(kind: Kind) -> str:
    """What stands before `owner/name` in web addresses: nothing for models."""
    return "" if kind == "model" else f"{kind}s/"


def repo_url(request: Request, kind: Kind, repo_id: str) -> str:
    """The repository's web address."""
    return f"{base_url(request)}/{url_prefix(kind)}{repo_id}"


def next_link(request: Request, **changes: str) -> dict[str, str]:
    """The `Link` header to the next page: this request's address with some parameters changed."""
    query = [(key, value) for key, value in request.query_params.multi_items() if key not in changes]
    path = request.scope["raw_path"].decode("ascii")
    return {"Link": f'<{base_url(request)}{path}?{urlencode([*query, *changes.items()])}>; rel="next"'}


def repo_json(
    repo: Repo, *, sha: str | None = None, files: Iterable[File] | None = None, sizes: bool = False
) -> Any:
    """A repository as `model_info` and `list_models` read it; `sizes` adds what `files_metadata` asks for."""
    shown: dict[str, Any] = {
        "_id": str(repo.key),
        "id": repo.id,
        "modelId": repo.id,
        "author": repo.owner,
        "private": repo.private,
        "gated": False,
        "disabled": False,
        "createdAt": repo.created_at,
        "lastModified": repo.updated_at,
        "tags": list(repo.tags),
        "cardData": repo.card,
        **({"pipeline_tag": repo.pipeline_tag} if repo.pipeline_tag else {}),
        **({"library_name": repo.library_name} if repo.library_name else {}),
    }
    if sha is not None:
        shown["sha"] = sha
    if files is not None:
        shown["siblings"] = [_sibling_json(file, sizes=sizes) for file in files]
    return shown


def file_json(file: File, last: Commit | None = None) -> dict[str, Any]:
    """A file as `list_repo_tree` reads it; `last` is the commit that changed it, if asked for."""
    shown: dict[str, Any] = {"type": "file", "path": file.path, "oid": file.git_id, "size": file.size_bytes}
    if file.lfs:
        shown["lfs"] = {"oid": file.sha256, "size": file.size_bytes, "pointerSize": _pointer_bytes(file)}
    if last:
        shown["lastCommit"] = {"id": last.oid, "title": last.title, "date": last.created_at}
    return shown


def folder_json(path: str, oid: str) -> dict[str, Any]:
    """A folder as `list_repo_tree` reads it."""
    return {"type": "directory", "path": path, "oid": oid, "size": 0}


def refs_json(refs: Iterable[Ref]) -> dict[str, Any]:
    """Branches and tags as `list_repo_refs` reads them."""
    shown: dict[str, Any] = {"branches": [], "tags": [], "converts": [], "pullRequests": []}
    for ref in refs:
        group, folder = ("branches", "heads") if ref.kind == "branch" else ("tags", "tags")
        shown[group].append({"name": ref.name, "ref": f"refs/{folder}/{ref.name}", "targetCommit": ref.oid})
    return shown


def commit_json(commit: Commit) -> dict[str, Any]:
    """A commit as `list_repo_commits` reads it."""
    return {
        "id": commit.oid,
        "title": commit.title,
        "message": commit.description,
        "authors": [{"user": commit.author}],
        "date": commit.created_at,
    }


def header_text(text: str) -> str:
    """`text` as it may stand in a header: one line of printable ASCII."""
    return "".join(char if " " <= char <= "~" else "?" for char in " ".join(text.split()))[:1000]


def _sibling_json(file: File, *, sizes: bool) -> dict[str, Any]:
    shown: dict[str, Any] = {"rfilename": file.path}
    if sizes:
        shown |= {"size": file.size_bytes, "blobId": file.git_id}
        if file.lfs:
            shown["lfs"] = {
                "sha256": file.sha256,
                "size": file.size_bytes,
                "pointerSize": _pointer_bytes(file),
            }
    return shown


def _pointer_bytes(file: File) -> int:
    return len(git.pointer(file.sha256, file.size_bytes))
