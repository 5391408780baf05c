from __future__ import annotations

import copy
import inspect
import pickle
import re
from collections.abc import Callable
from typing import Any

import pytest

from hubctl import errors
from hubctl.errors import AccessError, HubctlError, InputError, OverloadedError, UnavailableError

CLASSES = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, HubctlError)]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
@pytest.mark.parametrize("copied", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy, copy.deepcopy])
def test_an_error_survives_the_way_to_another_process(
    cls: type[HubctlError], copied: Callable[[HubctlError], HubctlError]
) -> None:
    extra: dict[type[HubctlError], dict[str, Any]] = {
        InputError: {"param": "n"},
        AccessError: {"forbidden": True},
        OverloadedError: {"retry_after_s": 2.5},
        UnavailableError: {"retry_after_s": 2.5},
    }
    keywords: dict[str, Any] = next((f for owner, f in extra.items() if issubclass(cls, owner)), {})
    before = cls("what went wrong", hint="hubctl show alice/cats", **keywords)
    after = copied(before)
    assert type(after) is cls
    assert str(after) == after.message == "what went wrong"
    assert after.__dict__ == before.__dict__
    for name, value in keywords.items():
        assert getattr(after, name) == value


def test_the_docstring_draws_the_tree_as_it_is() -> None:
    drawn = {}
    parents: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        if not (match := re.match(r"^[\s│├└─]*([A-Z]\w+Error)\b", line)):
            continue
        depth = line.index(match[1])
        parents = [p for p in parents if p[0] < depth]
        drawn[match[1]] = parents[-1][1] if parents else "Exception"
        parents.append((depth, match[1]))
    assert drawn == {c.__name__: c.__mro__[1].__name__ for c in CLASSES}
