"""Which licences of adapters go with which of bases: the cases that cards really have."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubctl.adapter.licence import Licence, licence_conflict, stated_licence

FLUX = {"license": "other", "license_name": "flux-1-dev-non-commercial-license"}
SD3 = {"license": "other", "license_name": "stabilityai-ai-community"}
IDS = ["mit", "apache-2.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "openrail++", "gpl-3.0", "other"]


@pytest.mark.parametrize(
    ("base", "adapter", "says"),
    [
        ("apache-2.0", "mit", None),
        ("mit", "cc-by-nc-4.0", None),
        ("cc-by-sa-4.0", "cc-by-sa-4.0", None),
        ("cc-by-sa-4.0", "mit", "asks for the same licence"),
        ("gpl-3.0", "apache-2.0", "asks for the same licence"),
        ("cc-by-nc-4.0", "apache-2.0", "non-commercial"),
        ("cc-by-nc-sa-4.0", "cc-by-nc-4.0", "asks for the same licence"),
        ("cc-by-nd-4.0", "cc-by-4.0", "does not allow works"),
        ("creativeml-openrail-m", "openrail++", None),
        ("creativeml-openrail-m", "mit", "limits of use"),
        ("openrail++", "apache-2.0", "limits of use"),
        (FLUX, "apache-2.0", "non-commercial"),
        (FLUX, FLUX, None),
        (SD3, "mit", "a licence of its own"),
        (SD3, SD3, None),
        ("other", "mit", None),
        ("agpl-3.0", "AGPL-3.0", None),
    ],
)
def test_conflicts(base: Any, adapter: Any, says: str | None) -> None:
    own, other = (
        stated_licence(card if isinstance(card, dict) else {"license": card}) for card in (adapter, base)
    )
    assert own is not None
    assert other is not None
    found = licence_conflict(own, other)
    assert (found is None) if says is None else (found is not None and says in found)
    assert found is None or str(other) in found


@given(st.sampled_from(IDS), st.none() | st.text(max_size=20))
def test_the_base_s_own_licence_is_never_wrong(licence: str, name: str | None) -> None:
    one = Licence(id=licence, name=name)
    assert licence_conflict(one, one) is None


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ({}, None), ({"license": ""}, None), ({"license": 3}, None), ({"license": []}, None),
        ({"license": "MIT"}, "mit"), ({"license": ["mit", "gpl"]}, "mit"), (FLUX, FLUX["license_name"]),
    ],
)  # fmt: skip
def test_what_a_card_states(card: dict[str, Any], licence: str | None) -> None:
    found = stated_licence(card)
    assert (str(found) if found else None) == licence
