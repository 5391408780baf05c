"""Markdown of strangers as harmless HTML. Pure.

The part of Markdown that model cards use. Nothing of the input is HTML: all of it is escaped, and only tags
from here get out. Every pattern is bounded, so that the time is in proportion to the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape
from urllib.parse import quote, unquote

_COMMENT = re.compile(r"<!--.{0,1000}?-->|<Gallery\s{0,9}/>", re.DOTALL)
_FENCE = re.compile(r"\s{0,3}(```+|~~~+)")
_HEADING = re.compile(r"(#{1,6}) .*")
_ITEM = re.compile(r"\s*(?:[-*+]|(\d{1,9})[.)])\s+(.*)")
_RULE = re.compile(r"\s{0,3}([-*_])(?:\s{0,3}\1){2,40}\s*$")
_INLINE = re.compile(
    r"`(?P<code>[^`]{1,500})`"
    r"|(?P<image>!)?\[(?P<text>[^\[\]]{0,500})\]\((?P<url>[^()\s]{1,1000})\)"
    r"|\*\*(?P<bold>[^*]{1,1000})\*\*"
    r"|\*(?P<italic>[^*\s][^*]{0,500})\*"
)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:|//")


def render(text: str, files_url: str) -> str:
    """HTML of a card's body; relative links and images lead to files under `files_url`."""
    lines = _COMMENT.sub("", text).splitlines()
    return "\n".join(_blocks(lines, files_url))


def safe_url(url: str, files_url: str, *, local_only: bool = False) -> str | None:
    """Where a link of the text may lead: the web, or a file of the repository; None is nowhere."""
    if _SCHEME.match(url):
        return url if not local_only and url.startswith(("https://", "http://")) else None
    if url.startswith(("/", "#", "?")) or ".." in unquote(url):
        return None
    return files_url + quote(unquote(url.removeprefix("./")))


def _blocks(lines: list[str], files_url: str) -> Iterator[str]:
    position = 0
    while position < len(lines):
        line = lines[position]
        if fence := _FENCE.match(line):
            end = position + 1
            while end < len(lines) and not lines[end].strip().startswith(fence[1]):
                end += 1
            yield f"<pre>{escape(chr(10).join(lines[position + 1 : end]))}</pre>"
            position = end + 1
            continue
        kind = _kind(line)
        end = position + 1
        while end < len(lines) and kind not in ("heading", "rule") and _kind(lines[end]) == kind:
            end += 1
        yield _block(kind, lines[position:end], files_url)
        position = end


def _kind(line: str) -> str:
    if not line.strip():
        return "nothing"
    if _FENCE.match(line):
        return "fence"
    if _HEADING.match(line):
        return "heading"
    if _RULE.match(line):
        return "rule"
    if item := _ITEM.match(line):
        return "ol" if item[1] else "ul"
    if line.lstrip().startswith("|"):
        return "table"
    return "quote" if line.startswith(">") else "paragraph"


def _block(kind: str, lines: list[str], files_url: str) -> str:
    if kind == "nothing":
        return ""
    if kind == "rule":
        return "<hr>"
    if kind == "heading":
        marks, _, text = lines[0].partition(" ")
        text = text.strip().rstrip("#")
        level = min(len(marks.strip()) + 1, 6)  # the page's own title is the first
        return f"<h{level}>{_inline(text, files_url)}</h{level}>"
    if kind in ("ul", "ol"):
        items = ((_ITEM.match(line) or ["", "", ""])[2] for line in lines)
        return f"<{kind}>{''.join(f'<li>{_inline(item, files_url)}</li>' for item in items)}</{kind}>"
    if kind == "table":
        return _table(lines, files_url)
    if kind == "quote":
        text = "\n".join(line.lstrip("> ") for line in lines)
        return f"<blockquote><p>{_inline(text, files_url)}</p></blockquote>"
    text = "\n".join(lines)
    return f"<p>{_inline(text, files_url)}</p>"


def _table(lines: list[str], files_url: str) -> str:
    has_head = len(lines) > 1 and _is_table_line(lines[1])
    rows = []
    for number, line in enumerate(line for line in lines if not _is_table_line(line)):
        cell = "th" if has_head and number == 0 else "td"
        texts = (text.strip() for text in line.strip().strip("|").split("|"))
        cells = "".join(f"<{cell}>{_inline(text, files_url)}</{cell}>" for text in texts)
        rows.append(f"<tr>{cells}</tr>")
    return f"<table>{''.join(rows)}</table>"


def _is_table_line(line: str) -> bool:
    return "-" in line and set(line) <= set("|:- \t")


def _inline(text: str, files_url: str) -> str:
    shown, position = [], 0
    for match in _INLINE.finditer(text):
        shown.append(escape(text[position : match.start()]))
        shown.append(_span(match, files_url))
        position = match.end()
    return "".join([*shown, escape(text[position:])])


def _span(match: re.Match[str], files_url: str) -> str:
    if match["code"] is not None:
        return f"<code>{escape(match['code'])}</code>"
    if match["bold"] is not None:
        return f"<strong>{_inline(match['bold'], files_url)}</strong>"
    if match["italic"] is not None:
        return f"<em>{_inline(match['italic'], files_url)}</em>"
    text = match["text"]
    if match["image"]:
        source = safe_url(match["url"], files_url, local_only=True)
        if source:
            return f'<img src="{escape(source)}" alt="{escape(text)}">'
    url = safe_url(match["url"], files_url)
    shown = _inline(text, files_url) if text else escape(match["url"])
    return f'<a href="{escape(url)}" rel="nofollow noreferrer">{shown}</a>' if url else shown
