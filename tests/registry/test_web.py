"""Pages for browsers: what they show, and that nothing of a stranger's text becomes part of the page."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubctl.registry.markdown import render
from hubctl.registry.page import gallery
from tests.registry.test_http import commit, make, put

CARD = b"""---
tags: [lora, "<b>tag</b>"]
widget:
- text: a <i>red</i> apple
  output: {url: image_0.png}
- text: lost
  output: {url: gone.png}
- 3
---
<Gallery />
# Line art & more
Drawn with **few** lines, see [the paper](https://example.org/p?a=1&b=2) or [notes](docs/notes.md).

![sample](./image_0.png) ![tracker](https://example.org/pixel.png)
<script>alert(1)</script> [x](javascript:alert(1)) [y](//evil.example)

| step | loss |
|---|---|
| 1 | 0.5 |

- one
- two

```python
print("<hi>")
```
"""
FILES = "/alice/x/resolve/main/"


class Tags(HTMLParser):
    """Which tags and addresses a browser would see."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.addresses: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        for name, value in attrs:
            assert not name.startswith("on")
            if name in ("href", "src") and value:
                self.addresses.add(value)


def test_a_page_shows_card_gallery_and_files(alice: httpx.Client, nobody: httpx.Client) -> None:
    files = {"README.md": CARD, "image_0.png": b"\x89PNG", "other.png": b"\x89PNG", "docs/a b.txt": b"text"}
    repo_id = make(alice, "page", files)
    answer = nobody.get(f"/{repo_id}")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    page, seen = answer.text, Tags(answer.text)
    assert "<h2>Line art &amp; more</h2>" in page
    assert "<figcaption>a &lt;i&gt;red&lt;/i&gt; apple</figcaption>" in page
    assert page.count("<figure>") == 1
    assert "<tr><th>step</th><th>loss</th></tr><tr><td>1</td><td>0.5</td></tr>" in page
    assert "<li>one</li><li>two</li>" in page
    assert "print(&quot;&lt;hi&gt;&quot;)" in page
    assert "script" not in seen.names
    at = f"/{repo_id}/resolve/main/"
    assert {f"{at}image_0.png", f"{at}docs/a%20b.txt", f"{at}docs/notes.md"} <= seen.addresses
    assert not any(address.startswith(("javascript:", "//")) for address in seen.addresses)
    assert nobody.get(f"{at}docs/a%20b.txt").content == b"text"
    sha = alice.get(f"/api/models/{repo_id}").json()["sha"]
    alice.post(f"/api/models/{repo_id}/branch/dev%2Fx").raise_for_status()
    commit(alice, repo_id, put("new.txt", b"new")).raise_for_status()
    for address in (f"/{repo_id}/commit/{sha}", f"/{repo_id}/tree/dev%2Fx"):
        assert "new.txt" not in nobody.get(address).text
    assert "tree/dev%2Fx" in nobody.get(f"/{repo_id}").text
    assert "new.txt" in nobody.get(f"/{repo_id}/tree/main").text
    moved = nobody.get(f"/{repo_id}/blob/dev%2Fx/docs/a%20b.txt", follow_redirects=True)
    assert moved.content == b"text"


def test_pages_hide_what_is_private(alice: httpx.Client, bob: httpx.Client, nobody: httpx.Client) -> None:
    repo_id = make(alice, "private-page", private=True)
    for client in (bob, nobody):
        assert client.get(f"/{repo_id}").status_code == 404
        assert repo_id not in client.get("/?search=private").text
    assert "(private)" in alice.get(f"/{repo_id}").text
    assert f"/{repo_id}" in alice.get("/?search=private").text
    escaped = nobody.get("/", params={"search": '"><script>'}).text
    assert "<script>" not in escaped


def test_datasets_have_pages(alice: httpx.Client) -> None:
    alice.post("/api/repos/create", json={"name": "data", "type": "dataset"}).raise_for_status()
    assert "alice/data" in alice.get("/datasets/alice/data").text
    assert alice.get("/alice/data").status_code == 404


@given(st.text(alphabet=st.sampled_from(list("<>&\"'`*_[]()!#|-:/ ahj\n\t1.")), max_size=200))
def test_no_text_gets_out_of_its_place(text: str) -> None:
    seen = Tags(render(text, FILES))
    assert seen.names <= {
        "p", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "li", "pre", "code", "strong", "em", "a", "img",
        "table", "tr", "td", "th", "blockquote", "hr",
    }  # fmt: skip
    for address in seen.addresses:
        assert address.startswith((FILES, "http://", "https://"))


@pytest.mark.parametrize("piece", ["[", "![", "*", "**a", "`", "<!--", "|", "- ", "> ", "#", "[a](", "---"])
def test_long_texts_come_back(piece: str) -> None:
    """With a careless pattern they would not, in anybody's lifetime."""
    for text in (piece * 30_000, f"{piece}\n" * 10_000, piece + " " * 90_000 + "x"):
        assert render(text, FILES)


def test_the_gallery_without_a_card() -> None:
    assert gallery({}, ["b.png", "a.JPG", "w.safetensors"]) == [("a.JPG", ""), ("b.png", "")]
    assert gallery({"widget": "x"}, []) == []
    assert gallery({"widget": [{"output": {"url": 3}}, {"output": "x"}]}, ["a.png"]) == [("a.png", "")]


def test_links_that_leave_the_repository() -> None:
    html = render("[a](../../../etc) [b](/admin) [c](data:text/html,x) [d](a%2e/b) [e](x?y#z)", FILES)
    for address in re.findall(r'href="([^"]*)"', html):
        assert address.startswith(FILES)
