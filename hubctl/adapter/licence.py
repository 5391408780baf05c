"""Whether an adapter may be shared under the licence that its card states, as far as its base's tells.

No legal advice: a short list of what licences themselves say of works made from a work, by the ids that cards
use (https://huggingface.co/docs/hub/repositories-licenses). What is not known is not judged.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_NON_COMMERCIAL = re.compile(r"-nc\b|non-?commercial|research", re.IGNORECASE)
_NO_DERIVATIVES = re.compile(r"^cc-by(-nc)?-nd\b", re.IGNORECASE)
_SHARE_ALIKE = re.compile(r"^(cc-by(-nc)?-sa|a?gpl|odbl|eupl)\b", re.IGNORECASE)
_USE_RESTRICTED = re.compile(r"openrail|-rail\b", re.IGNORECASE)
_OPEN = frozenset({"other", "unknown"})
"""Ids that say nothing by themselves."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Licence:
    """What a card states."""

    id: str
    """As cards write it: `apache-2.0`, `cc-by-sa-4.0`, `other`, ..."""
    name: str | None = None
    """`license_name`, which goes with `other`."""

    def __str__(self) -> str:
        return self.name or self.id


def stated_licence(card: Mapping[str, Any]) -> Licence | None:
    """The licence of a card's metadata (the first, when it names several); None when it names none."""
    named = card.get("license")
    first = named[0] if isinstance(named, list) and named else named
    if not isinstance(first, str) or not first.strip():
        return None
    name = card.get("license_name")
    return Licence(id=first.strip().lower(), name=name if isinstance(name, str) and name else None)


def licence_conflict(adapter: Licence, base: Licence) -> str | None:
    """What speaks against sharing an adapter under its licence, made for a base under another; or None."""
    if str(adapter).lower() == str(base).lower():
        return None
    if _NO_DERIVATIVES.search(base.id):
        return f"{base} does not allow works made from the base to be shared"
    if _NON_COMMERCIAL.search(f"{base.id} {base.name or ''}") and not _NON_COMMERCIAL.search(
        f"{adapter.id} {adapter.name or ''}"
    ):
        return f"the base is {base}, for non-commercial use, and {adapter} allows more"
    if _SHARE_ALIKE.search(base.id):
        return f"the base is {base}, which asks for the same licence, not {adapter}"
    if _USE_RESTRICTED.search(base.id) and not _USE_RESTRICTED.search(adapter.id):
        return f"the base is {base}, whose limits of use must be passed on, and {adapter} has none"
    if base.id in _OPEN and base.name and adapter.id not in _OPEN:
        return f"the base has a licence of its own, {base}: does it allow {adapter}?"
    return None
