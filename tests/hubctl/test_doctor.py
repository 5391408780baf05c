from __future__ import annotations

from pathlib import Path

import pytest
from packaging.requirements import Requirement

from hubctl.doctor import EXTRAS, cache, judge, versions


@pytest.mark.parametrize(
    ("installed", "state", "says"),
    [
        ({"torch": "2.13.0+cpu", "peft": "0.21.1"}, "ok", "torch 2.13.0+cpu, peft 0.21.1"),
        ({"torch": "2.13.0"}, "missing", "without peft"),
        ({}, "missing", "without torch, peft"),
        ({"torch": "2.1.0", "peft": "0.21.1"}, "wrong", "not made for torch 2.1.0"),
        ({"torch": "2.14.0", "peft": "0.30"}, "wrong", "not made for peft 0.30"),
    ],
)
def test_an_extra_is_there_when_all_it_asks_for_is(installed: dict[str, str], state: str, says: str) -> None:
    wanted = [Requirement("torch>=2.13"), Requirement("peft>=0.21,<0.22; extra == 'train'")]
    found = judge("train", "hubctl train", wanted, installed.get)
    assert (found.state, found.says) == (state, says)
    assert found.hint == (None if state == "ok" else "pip install 'hubctl[train]'")


def test_what_this_package_itself_asks_for_is_there() -> None:
    found = {finding.what: finding for finding in versions()}
    assert set(found) == {"hubctl", *EXTRAS.values()}
    assert {finding.state for finding in found.values()} == {"ok"}
    assert "ray" in found[EXTRAS["serve"]].says
    assert "torch" in found[EXTRAS["train"]].says
    assert "torch" not in found[EXTRAS["registry"]].says


def test_a_cache_is_where_one_can_write(tmp_path: Path) -> None:
    found = cache(tmp_path / "not" / "made" / "yet")
    assert str(tmp_path) in found.says
    assert not (tmp_path / "not").exists()
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        assert (cache(path).state, cache(path).says) == ("wrong", f"{path} cannot be written to")
