"""What an adapter's metadata, card, manifest and settings say of its base and its trigger words.

kohya's sd-scripts write `ss_*`; `modelspec.*` is Stability's ModelSpec (https://github.com/Stability-AI/ModelSpec).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hubctl.adapter.card import first_base_model
from hubctl.adapter.fingerprint import stated_family
from hubctl.adapter.layout import CONFIG_PEFT

Table = Mapping[str, Any]

MAX_TAGS = 5
MAX_TEXT = 300
"""Characters of a stranger's text that are shown."""

_LOCAL_PATH = re.compile(
    r"(?<![\w:/.])(?:[A-Za-z]:[\\/]|/(?:home|Users|mnt|media|root|data|content|workspace)/|~/|file://)"
    r"[^\s\"'`<>|()\[\]]*"
)
_REPEATS = re.compile(r"^\d+_(.+)$")  # kohya's folders: `10_sks dog`


@dataclass(frozen=True, kw_only=True, slots=True)
class StatedBase:
    """What one source calls the base."""

    base: str
    source: str
    family: str | None
    """The family that the name means, if it means one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TriggerWords:
    """Words that call up what the adapter learnt, by one source."""

    words: str
    source: str


def stated_bases(metadata: Table, card: Table, manifest: Table, config: Table) -> tuple[StatedBase, ...]:
    """The base as each source names it, the most exact first; the same name is told once."""
    base = manifest.get("base")
    found = [
        ("card", first_base_model(card)),
        ("manifest", base.get("id") if isinstance(base, dict) else None),
        (CONFIG_PEFT, config.get("base_model_name_or_path")),
        *((key, metadata.get(key)) for key in ("modelspec.architecture", "ss_base_model_version")),
    ]
    told: dict[str, StatedBase] = {}
    for source, value in found:
        if isinstance(value, str) and value.strip() and value not in told:
            text = value.strip()[:MAX_TEXT]
            told[value] = StatedBase(base=text, source=source, family=stated_family(text))
    return tuple(told.values())


def trigger_words(metadata: Table, card: Table, manifest: Table) -> tuple[TriggerWords, ...]:
    """Trigger words, those that somebody wrote down before those that the captions suggest."""
    settings = manifest.get("settings")
    found = [
        ("card", card.get("instance_prompt")),
        ("manifest", settings.get("instance_prompt") if isinstance(settings, dict) else None),
        ("modelspec.trigger_phrase", metadata.get("modelspec.trigger_phrase")),
        *(("ss_tag_frequency", words) for words in _frequent_tags(metadata.get("ss_tag_frequency"))),
    ]
    told: dict[str, TriggerWords] = {}
    for source, words in found:
        if isinstance(words, str) and words.strip():
            text = words.strip()[:MAX_TEXT]
            told.setdefault(text, TriggerWords(words=text, source=source))
    return tuple(told.values())


def private_fields(metadata: Table) -> list[str]:
    """Names of the metadata's fields that hold paths of the machine it was trained on."""
    return sorted(key for key, value in metadata.items() if local_path(str(value)))


def local_path(text: str) -> str | None:
    """The first path of somebody's own machine that `text` holds."""
    found = _LOCAL_PATH.search(text)
    return found[0] if found else None


def _frequent_tags(text: object) -> list[str]:
    """What kohya's table folder → tag → count tells: the folders' subjects, and what most captions hold."""
    if not isinstance(text, str):
        return []
    try:
        table = json.loads(text)
    except (ValueError, RecursionError):
        return []
    if not isinstance(table, dict):
        return []
    concepts = [found.group(1) for folder in table if (found := _REPEATS.match(folder))]
    counts: Counter[str] = Counter()
    for tags in table.values():
        for tag, count in tags.items() if isinstance(tags, dict) else ():
            if isinstance(count, int) and not isinstance(count, bool):
                counts[str(tag).strip()] += count
    most = max(counts.values(), default=0)
    # At least half as often as the commonest: a trigger word is in nearly every caption.
    return concepts + [tag for tag, count in counts.most_common(MAX_TAGS) if 2 * count >= most > 0]
