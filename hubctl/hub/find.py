"""Adapters on a registry: listed, and found by words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from hubctl.errors import InputError
from hubctl.hub.client import AdapterSummary, Hub
from hubctl.hub.tokens import HF_URL


def list_adapters(
    hub: Hub,
    search: str | None = None,
    author: str | None = None,
    base_model: str | None = None,
    limit: int = 100,
    *,
    everything: bool = False,
) -> list[AdapterSummary]:
    """Adapters on this registry, the latest first; with `everything` the base models too."""
    return _first(limit, _listed(hub, search, author, base_model, (), limit, everything=everything))


def search_adapters(
    hub: Hub, words: Sequence[str], *, base_model: str | None = None, limit: int = 100
) -> list[AdapterSummary]:
    """Adapters that every one of `words` is said of, those with a word in their name first.

    The registry is asked for the longest word, in names and as a tag; the others may also stand in the base's
    name or the trigger.

    Raises:
        InputError: there is no word.
    """
    words = [word.lower() for text in words for word in text.split()]
    if not words:
        raise InputError("search for what?", hint="hubctl search WORD...")
    longest = max(words, key=len)
    by_name = _listed(hub, longest, None, base_model, (), limit)
    by_tag = _listed(hub, None, None, base_model, (longest,), limit)
    found = {
        one.repo_id: one for source in (by_name, by_tag) for one in _first(limit, matching(words, source))
    }
    return ranked(words, found.values())[:limit]


def matching(words: Sequence[str], found: Iterable[AdapterSummary]) -> Iterator[AdapterSummary]:
    """Those of `found` that every word (in lower case) is said of."""
    for one in found:
        said = "\n".join([one.repo_id, *one.tags, one.base_model or "", one.trigger or ""]).lower()
        if all(word in said for word in words):
            yield one


def ranked(words: Sequence[str], found: Iterable[AdapterSummary]) -> list[AdapterSummary]:
    """The more words in the name the better; where that is equal, the order of `found` stays."""
    return sorted(found, key=lambda one: -sum(word in one.repo_id.lower() for word in words))


def _listed(
    hub: Hub,
    search: str | None,
    author: str | None,
    base_model: str | None,
    tags: Sequence[str],
    limit: int,
    *,
    everything: bool = False,
) -> Iterator[AdapterSummary]:
    # The public hub has millions of models: there, let it select. A registry of one's own may hold adapters
    # without tags, so there we look at the cards.
    public = hub.endpoint == HF_URL
    if base_model:
        tags = [*tags, f"base_model:{'adapter:' if public else ''}{base_model}"]
    elif public and not everything:
        tags = [*tags, "lora"]
    for one in hub.models(search=search, author=author, tags=tags, limit=limit if public else None):
        if not everything and not public and one.base_model is None and "lora" not in one.tags:
            continue
        if base_model is None or one.base_model == base_model:
            yield one


def _first(limit: int, found: Iterable[AdapterSummary]) -> list[AdapterSummary]:
    return [one for one, _ in zip(found, range(limit), strict=False)]
