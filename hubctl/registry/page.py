"""The registry's pages as HTML. Pure: facts in, text out, everything from strangers escaped."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Collection, Iterable, Sequence
from html import escape
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

from hubctl.registry.commits import Commit, File
from hubctl.registry.markdown import render
from hubctl.registry.repo import Ref, Repo

IMAGES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif"})
MAX_PICTURES = 24
MAX_BODY_CHARACTERS = 100_000

_STYLE = (
    "body{max-width:60rem;margin:2rem auto;padding:0 1rem;font:16px/1.5 system-ui,sans-serif;color:#222}"
    "a{color:#06c;text-decoration:none}h1{font-size:1.5rem}img{max-width:100%}"
    "pre,code{background:#f4f4f4;border-radius:3px}pre{padding:.7rem;overflow-x:auto}"
    "table{border-collapse:collapse}td,th{padding:.15rem .8rem .15rem 0;text-align:left}"
    ".tags span{background:#eef;border-radius:3px;padding:.1rem .4rem;margin-right:.3rem;font-size:.85rem}"
    ".gallery{display:flex;flex-wrap:wrap;gap:.8rem}figure{margin:0;width:11rem}figure img{width:100%}"
    "figcaption,.faint{font-size:.85rem;color:#666}"
)
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
POLICY = (
    f"default-src 'none'; img-src 'self'; style-src 'sha256-{_STYLE_HASH}'; form-action 'self';"
    " base-uri 'none'; frame-ancestors 'none'"
)
"""No script, no frame, nothing from elsewhere: a page shows what strangers wrote."""


def repo_page(
    repo: Repo,
    *,
    url: str,
    revision: str,
    commit: Commit,
    files: Collection[File],
    refs: Sequence[Ref],
    card: dict[str, Any],
    body: str,
) -> str:
    """A repository, whose address is `url`, at a revision: what its card says, its pictures, its files."""
    files_url = f"{url}/resolve/{quote(revision, safe='')}/"
    pictures = gallery(card, [file.path for file in files])
    figures = "".join(
        f'<figure><a href="{escape(files_url + quote(path))}">'
        f'<img src="{escape(files_url + quote(path))}" alt="" loading="lazy"></a>'
        f"<figcaption>{escape(text)}</figcaption></figure>"
        for path, text in pictures
    )
    rows = "".join(
        f'<tr><td><a href="{escape(files_url + quote(file.path))}">{escape(file.path)}</a></td>'
        f'<td>{file.size_bytes:,} bytes</td><td class="faint">{file.etag[:12]}</td></tr>'
        for file in files
    )
    other = "".join(
        f' <a href="{escape(url)}/tree/{quote(ref.name, safe="")}">{escape(ref.name)}</a>' for ref in refs
    )
    tags = "".join(f"<span>{escape(tag)}</span>" for tag in repo.tags)
    return _document(
        repo.id,
        f"<h1>{escape(repo.id)}{' (private)' if repo.private else ''}</h1>"
        f'<p class="tags">{tags}</p>'
        f'<p class="faint">{escape(revision)} is {commit.oid[:12]}: {escape(commit.title)},'
        f" by {escape(commit.author)} at {escape(commit.created_at)}. Revisions:{other}</p>"
        + (f'<div class="gallery">{figures}</div>' if figures else "")
        + render(body[:MAX_BODY_CHARACTERS], files_url)
        + f"<h2>Files</h2><table>{rows}</table>",
    )


def index_page(repos: Iterable[Repo], *, base_url: str, search: str) -> str:
    """The latest models, or those that a search found."""
    rows = "".join(
        f'<tr><td><a href="{escape(base_url)}/{escape(repo.id)}">{escape(repo.id)}</a></td>'
        f"<td>{escape(repo.pipeline_tag or '')}</td>"
        f'<td class="faint">{escape(repo.updated_at[:10])}</td></tr>'
        for repo in repos
    )
    return _document(
        "Models",
        "<h1>Models</h1>"
        f'<form><input name="search" value="{escape(search)}" placeholder="search"></form>'
        f"<table>{rows}</table>",
    )


def gallery(card: dict[str, Any], paths: Collection[str]) -> list[tuple[str, str]]:
    """Pictures to show and what made them: those that the card names, else those that lie there."""
    known = {path for path in paths if PurePosixPath(path).suffix.lower() in IMAGES}
    found = []
    widgets = card.get("widget")
    for entry in widgets if isinstance(widgets, list) else ():
        output = entry.get("output") if isinstance(entry, dict) else None
        url = output.get("url") if isinstance(output, dict) else None
        path = url.removeprefix("./") if isinstance(url, str) else None
        if path in known and path is not None:
            found.append((path, str(entry.get("text") or "")))
    return (found or [(path, "") for path in sorted(known)])[:MAX_PICTURES]


def _document(title: str, content: str) -> str:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>{content}</body></html>"
    )
