"""Routes for browsers: a page per repository, and the list of them. Read-only."""

from __future__ import annotations

from urllib.parse import quote, urlsplit

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from hubctl.errors import InputError
from hubctl.registry import listing
from hubctl.registry.card import MAX_CARD_BYTES, read_front_matter, without_front_matter
from hubctl.registry.commits import README
from hubctl.registry.page import POLICY, index_page, repo_page
from hubctl.registry.repo import MAIN
from hubctl.registry.wire import base_url, open_repo, repo_url, services_of, user_of

_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}
REPOS_SHOWN = 100


def repo(request: Request) -> Response:
    """`GET /{repo}`, `.../tree/{revision}` and `.../commit/{oid}`: the repository's page."""
    shown = open_repo(request)
    services = services_of(request)
    revision = request.path_params.get("revision", MAIN)
    oid = services.repos.resolve(shown, revision)
    files = services.repos.files(shown, oid)
    readme = files.get(README)
    text = ""
    if readme and readme.size_bytes <= MAX_CARD_BYTES * 4 and services.blobs.size(readme.sha256) is not None:
        text = services.blobs.path(readme.sha256).read_bytes().decode("utf-8", "replace")
    try:
        card = read_front_matter(text)
    except InputError:  # of a mirrored repository: our own users cannot push such a card
        card = {}
    html = repo_page(
        shown,
        url=_path_of(repo_url(request, shown.kind, shown.id)),
        revision=revision,
        commit=services.repos.commit_details(shown, {oid})[oid],
        files=files.values(),
        refs=services.repos.refs(shown),
        card=card,
        body=without_front_matter(text),
    )
    return HTMLResponse(html, headers=_HEADERS)


def blob(request: Request) -> Response:
    """`GET /{repo}/blob/{revision}/{path}`, the address that the Hub's clients print: the file itself."""
    shown = open_repo(request)
    params = request.path_params
    url = _path_of(repo_url(request, shown.kind, shown.id))
    return RedirectResponse(
        f"{url}/resolve/{quote(params['revision'], safe='')}/{quote(params['path'])}", status_code=302
    )


def index(request: Request) -> Response:
    """`GET /`: the latest models that the caller may see, or those that `search` finds."""
    search = request.query_params.get("search", "")
    query = listing.Query(kind="model", user=user_of(request), search=search, limit=REPOS_SHOWN)
    found, _ = listing.find(services_of(request).db, query)
    return HTMLResponse(
        index_page(found, base_url=_path_of(base_url(request)), search=search), headers=_HEADERS
    )


def _path_of(url: str) -> str:
    """An address as pages use it: they work under every name that the registry is reached by."""
    return urlsplit(url).path
