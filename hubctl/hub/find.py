"""Adapters on a registry: listed, and found by words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from hubctl.errors import InputError
from hubctl.hub.client import AdapterSummary, Hub
from hubctl.hub.tokens import HF_URL

MAX_LOOKED_AT = 2000


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
    found = _listed(hub, search, author, base_model, (), limit, everything=everything)
    return list(islice(found, limit))


def search_adapters(
    hub: Hub, words: Sequence[str], *, base_model: str | None = None, limit: int = 100
) -> list[AdapterSummary]:
    """Adapters that every one of `words` is said of, those with a word in their name first.

    The registry is asked for each word, in names and as a tag, and the latest `MAX_LOOKED_AT` of each answer
    are looked at; so one word must be there, the others may also stand in the base's name or the trigger.

    Raises:
        InputError: there is no word.
    """
    asked = dict.fromkeys(word for text in words for word in text.split())
    if not asked:
        raise InputError("search for what?", hint="hubctl search WORD...")
    words = [word.lower() for word in asked]
    found: dict[str, AdapterSummary] = {}
    for word in asked:
        for search, tags in ((word, ()), (None, (word,))):
            answer = _listed(hub, search, None, base_model, tags, MAX_LOOKED_AT)
            for one in islice(matching(words, islice(answer, MAX_LOOKED_AT)), limit):
                found.setdefault(one.repo_id, one)
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
