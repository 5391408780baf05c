"""The registry as an ASGI application: which address goes where, and how a fault becomes an answer."""

from __future__ import annotations

import errno
import logging
import sqlite3
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from starlette.applications import Starlette
from starlette.convertors import Convertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from hubctl.errors import AccessError, HubctlError
from hubctl.registry import api, download, lfs, multipart, storage, web, xet
from hubctl.registry.faults import EntryNotFound, status_of
from hubctl.registry.limits import Limits
from hubctl.registry.middleware import (
    LimitRate,
    NameRequest,
    ReadBodyBeforeAnswer,
    RouteOnRawPath,
    request_id,
)
from hubctl.registry.services import open_services
from hubctl.registry.wire import KINDS, header_text

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_LOG = logging.getLogger(__name__)


def create_app(root: Path, *, base_url: str | None = None, limits: Limits | None = None) -> Starlette:
    """The registry kept in `root`.

    `base_url` is what clients call it, for a registry behind a proxy; by default what each request called it.
    """
    limits = limits or Limits()
    services = open_services(root)
    around = [Middleware(NameRequest), Middleware(RouteOnRawPath), Middleware(ReadBodyBeforeAnswer)]
    if limits.requests is not None:
        around.append(Middleware(LimitRate, accounts=services.accounts, quota=limits.requests))
    app = Starlette(
        routes=_routes(),
        middleware=around,
        # Starlette's types know only handlers of Exception itself.
        exception_handlers={
            HubctlError: _explain,  # type: ignore[dict-item]
            HTTPException: _explain_http,  # type: ignore[dict-item]
            ClientDisconnect: _client_gone,  # type: ignore[dict-item]
            OSError: _disk_fault,  # type: ignore[dict-item]
            sqlite3.OperationalError: _disk_fault,  # type: ignore[dict-item]
            Exception: _bug,
        },
    )
    app.state.services = services
    app.state.base_url = base_url.rstrip("/") if base_url else None
    app.state.limits = limits
    return app


class _Kind(Convertor[str]):
    regex = "|".join(KINDS)

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


class _Segment(Convertor[str]):
    """One segment of the raw path, decoded only now."""

    regex = "[^/]+"

    def convert(self, value: str) -> str:
        return unquote(value)

    def to_string(self, value: str) -> str:
        return value


class _Rest(_Segment):
    """All that is left of the raw path, decoded only now."""

    regex = ".*"


register_url_convertor("kind", _Kind())
register_url_convertor("one", _Segment())
register_url_convertor("rest", _Rest())


def _routes() -> list[Route]:
    repo = "/api/{kind:kind}/{owner:one}/{name:one}"
    # Web addresses: models have no prefix, and no user is ever called like one (names.py).
    pages = ("/{kind:kind}/{owner:one}/{name:one}", "/{owner:one}/{name:one}")
    cas = "/xet/{epoch:one}/{user:one}"
    return [
        Route("/healthz", lambda _: JSONResponse({"status": "ok"})),
        Route("/api/whoami-v2", api.whoami),
        Route("/api/validate-yaml", api.validate_card, methods=["POST"]),
        Route("/api/repos/create", api.create_repo, methods=["POST"]),
        Route("/api/repos/delete", api.delete_repo, methods=["DELETE"]),
        Route("/api/repos/removed", api.list_removed),
        Route("/api/repos/restore", api.restore_repo, methods=["POST"]),
        Route("/api/repos/move", api.move_repo, methods=["POST"]),
        Route("/api/settings/repositories", storage.list_own),
        Route("/api/organizations/{org:one}/settings/repositories", storage.list_own),
        Route("/api/{kind:kind}", api.list_repos),
        Route(repo, api.repo_info),
        Route(f"{repo}/revision/{{revision:one}}", api.repo_info),
        Route(f"{repo}/auth-check", api.auth_check),
        Route(f"{repo}/auth-check/write", api.auth_check),
        Route(f"{repo}/settings", api.update_settings, methods=["PUT"]),
        Route(f"{repo}/refs", api.list_refs),
        Route(f"{repo}/commits/{{revision:one}}", api.list_commits),
        Route(f"{repo}/branch/{{branch:one}}", api.create_branch, methods=["POST"]),
        Route(f"{repo}/branch/{{branch:one}}", api.delete_branch, methods=["DELETE"]),
        Route(f"{repo}/tag/{{revision:one}}", api.create_tag, methods=["POST"]),
        Route(f"{repo}/tag/{{tag:one}}", api.delete_tag, methods=["DELETE"]),
        Route(f"{repo}/tree/{{revision:one}}", download.tree),
        Route(f"{repo}/tree/{{revision:one}}/{{path:rest}}", download.tree),
        Route(f"{repo}/paths-info/{{revision:one}}", api.paths_info, methods=["POST"]),
        Route(f"{repo}/preupload/{{revision:one}}", lfs.preupload, methods=["POST"]),
        Route(f"{repo}/commit/{{revision:one}}", api.commit, methods=["POST"]),
        Route(f"{repo}/super-squash/{{branch:one}}", storage.squash, methods=["POST"]),
        Route(f"{repo}/duplicate", storage.duplicate, methods=["POST"]),
        Route(f"{repo}/lfs-files", storage.list_large),
        Route(f"{repo}/lfs-files/batch", storage.delete_large, methods=["POST"]),
        Route(f"{repo}/xet-write-token/{{revision:one}}", xet.write_token),
        Route("/api/{kind:kind}/{name:one}", api.no_such_repo),
        Route(f"{cas}/v1/xorbs/default/{{hash:one}}", xet.upload_xorb, methods=["POST"]),
        Route(f"{cas}/v1/shards", xet.upload_shard, methods=["POST"]),
        Route(f"{cas}/v2/shards", xet.upload_shard, methods=["POST"]),
        Route("/lfs/{signature:one}", lfs.upload, methods=["PUT"]),
        Route("/lfs/{signature:one}/part/{part:one}", multipart.upload_part, methods=["PUT"]),
        Route("/lfs/{signature:one}/complete", multipart.complete, methods=["POST"]),
        *(Route(f"{at}.git/info/lfs/objects/batch", lfs.batch, methods=["POST"]) for at in pages),
        *(Route(f"{at}.git/info/lfs/verify", lfs.verify, methods=["POST"]) for at in pages),
        *(Route(f"{at}/resolve/{{revision:one}}/{{path:rest}}", download.resolve) for at in pages),
        Route("/", web.index),
        *(Route(at, web.repo) for at in pages),
        *(Route(f"{at}/tree/{{revision:one}}", web.repo) for at in pages),
        *(Route(f"{at}/commit/{{revision:one}}", web.repo) for at in pages),
        *(Route(f"{at}/blob/{{revision:one}}/{{path:rest}}", web.blob) for at in pages),
        Route("/{name:one}/resolve/{revision:one}/{path:rest}", api.no_such_repo),
    ]


def _explain(request: Request, error: HubctlError) -> Response:
    del request
    headers = {"X-Error-Code": type(error).__name__, "X-Error-Message": header_text(error.message)}
    if isinstance(error, EntryNotFound) and error.commit:
        headers["X-Repo-Commit"] = error.commit
    status = status_of(error)
    if isinstance(error, AccessError) and status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    body: dict[str, Any] = {"error": error.message}
    if error.hint:
        body["hint"] = error.hint
    return JSONResponse(body, status_code=status, headers=headers)


def _explain_http(request: Request, error: HTTPException) -> Response:
    del request
    message = "this registry has no such address" if error.status_code == 404 else error.detail
    headers = {**(error.headers or {}), "X-Error-Message": header_text(message)}
    return JSONResponse({"error": message}, status_code=error.status_code, headers=headers)


def _client_gone(request: Request, error: ClientDisconnect) -> Response:
    del request, error
    return Response(status_code=499)  # nobody reads it; what was drafted is gone already


def _disk_fault(request: Request, error: OSError | sqlite3.OperationalError) -> Response:
    full = (
        error.errno in _FULL if isinstance(error, OSError) else error.sqlite_errorcode == sqlite3.SQLITE_FULL
    )
    if not full:
        raise error
    _LOG.error("request %s: %s", request_id(request.scope), error)
    # Not a status 5xx: clients would send all of it again, five times.
    message = "the registry has no room on its disk: tell who runs it"
    headers = {"X-Error-Code": "StorageFull", "X-Error-Message": message}
    return JSONResponse({"error": message}, status_code=413, headers=headers)


def _bug(request: Request, error: Exception) -> Response:
    """What is no fault of ours to explain; the server's log has the traceback, under the same request id."""
    name = request_id(request.scope)
    _LOG.error("request %s failed: %s", name, type(error).__name__)
    message = f"the registry failed; its log says why, under request {name}"
    headers = {"X-Error-Message": message, "X-Request-Id": name}
    return JSONResponse({"error": message}, status_code=500, headers=headers)
