"""Routes that read a repository's files: their bytes, and the folders they lie in."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response

from hubctl.registry import git
from hubctl.registry.commits import Commit, File
from hubctl.registry.faults import EntryNotFound, LostFile
from hubctl.registry.repo import Repo
from hubctl.registry.wire import file_json, flag, folder_json, next_link, number, open_repo, services_of

ENTRIES_PER_PAGE = 1000

# Files come from strangers: a browser may show these, and must not take anything else for a page or a script.
_MEDIA_TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".gif": "image/gif",
    ".json": "application/json",
    ".md": "text/plain; charset=utf-8",
    ".txt": "text/plain; charset=utf-8",
}


def resolve(request: Request) -> Response:
    """`GET` or `HEAD /{repo}/resolve/{revision}/{path}`: a file, or a range of it."""
    repo = open_repo(request)
    services = services_of(request)
    oid = services.repos.resolve(repo, request.path_params["revision"])
    file = services.repos.file(repo, oid, request.path_params["path"])
    if services.blobs.size(file.sha256) != file.size_bytes:
        raise LostFile(f"{file.path!r} of {repo.id} is damaged in the registry's storage: tell who runs it")
    headers = {
        "ETag": f'"{file.etag}"',
        "X-Repo-Commit": oid,
        "Cache-Control": "no-cache",
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "default-src 'none'; sandbox",
        "Content-Disposition": f"inline; filename*=UTF-8''{quote(PurePosixPath(file.path).name)}",
    }
    if file.lfs:
        headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(file.size_bytes)}
    if request.headers.get("if-none-match") in (headers["ETag"], "*"):
        return Response(status_code=304, headers=headers)
    media_type = _MEDIA_TYPES.get(PurePosixPath(file.path).suffix.lower(), "application/octet-stream")
    return _File(services.blobs.path(file.sha256), headers=headers, media_type=media_type)


class _File(FileResponse):
    chunk_size = 1 << 20
    """Each chunk is read in a thread of its own turn: with 64 KiB that takes longer than the reading."""


def tree(request: Request) -> Response:
    """`GET .../tree/{revision}[/{folder}]`: what lies in a folder, or with `recursive` below it."""
    repo = open_repo(request)
    repos = services_of(request).repos
    oid = repos.resolve(repo, request.path_params["revision"])
    folder = request.path_params.get("path", "").strip("/")
    listing = _Tree(repos.files(repo, oid))
    if folder and folder not in listing.folders:
        raise EntryNotFound(f"{repo.id} at {oid[:12]} has no folder {folder!r}", commit=oid)
    paths = listing.below(folder, recursive=flag(request, "recursive"))
    start, limit = (
        number(request, "cursor", 0),
        min(max(number(request, "limit", ENTRIES_PER_PAGE), 1), ENTRIES_PER_PAGE),
    )
    page = paths[start : start + limit]
    shown = _entries(request, repo, listing, page, expand=flag(request, "expand"))
    more = start + limit < len(paths)
    return JSONResponse(shown, headers=next_link(request, cursor=str(start + limit)) if more else None)


def entries_of(request: Request, paths: Iterable[str], expand: bool) -> list[dict[str, Any]]:
    """The entries of `paths` at the revision that the URL names; those that do not exist are left out."""
    repo = open_repo(request)
    repos = services_of(request).repos
    listing = _Tree(repos.files(repo, repos.resolve(repo, request.path_params["revision"])))
    known = [path for path in dict.fromkeys(path.strip("/") for path in paths) if path and path in listing]
    return _entries(request, repo, listing, known, expand=expand)


class _Tree:
    """The files of a commit, and the folders that they imply."""

    def __init__(self, files: dict[str, File]) -> None:
        self.files = files
        self.folders = git.tree_ids({path: file.git_id for path, file in files.items()})

    def __contains__(self, path: str) -> bool:
        return path in self.files or path in self.folders

    def below(self, folder: str, *, recursive: bool) -> list[str]:
        """Paths in `folder`, sorted; with `recursive` those in its folders too."""
        prefix = f"{folder}/" if folder else ""
        inside = (path for path in (*self.files, *self.folders) if path and path.startswith(prefix))
        return sorted(path for path in inside if recursive or "/" not in path[len(prefix) :])


def _entries(
    request: Request, repo: Repo, listing: _Tree, paths: Iterable[str], *, expand: bool
) -> list[dict[str, Any]]:
    files = [listing.files[path] for path in paths if path in listing.files]
    last: dict[str, Commit] = {}
    if expand:
        last = services_of(request).repos.commit_details(repo, {file.changed_in for file in files})
    return [
        file_json(file, last.get(file.changed_in))
        if (file := listing.files.get(path))
        else folder_json(path, listing.folders[path])
        for path in paths
    ]
