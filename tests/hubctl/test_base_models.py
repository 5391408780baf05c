from __future__ import annotations

import json
from pathlib import Path

import pytest

from hubctl.base_models import embedded_bases, folder_sha256, locate_base
from hubctl.errors import InputError, NotFoundError
from hubctl.refs import AdapterRef


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "base/sub").mkdir(parents=True)
    (tmp_path / "base/config.json").write_text(
        json.dumps({"architectures": ["SegformerForSemanticSegmentation"]})
    )
    (tmp_path / "base/sub/model.safetensors").write_bytes(b"weights")
    return tmp_path / "base"


class Shelf:
    """A hub with one base."""

    def __init__(self, path: Path) -> None:
        self.path, self.asked = path, [AdapterRef("nobody/nothing")]

    def fetch(self, ref: AdapterRef) -> tuple[Path, str]:
        self.asked.append(ref)
        return self.path, "c" * 40


def test_a_folder(base: Path) -> None:
    found = locate_base(str(base))
    assert (found.id, found.path, found.commit) == (str(base), base, None)
    assert found.family.name == "segformer"
    assert found.sha256 == folder_sha256(base)


def test_a_repository(base: Path) -> None:
    shelf = Shelf(base)
    found = locate_base("alice/base@v1", fetch=shelf.fetch)
    assert (found.id, found.commit) == ("alice/base", "c" * 40)
    assert shelf.asked[-1] == AdapterRef("alice/base", "v1")


@pytest.mark.parametrize("name", sorted(embedded_bases()))
def test_embedded_bases_answer_to_both_names(name: str) -> None:
    short, full = locate_base(name), locate_base(f"hubctl/{name}")
    assert short == full
    assert short.id == f"hubctl/{name}"
    assert short.commit is None


@pytest.mark.parametrize("ref", ["nothing", "alice/nothing", "./nothing", "hubctl/nothing", ""])
def test_an_unknown_base_is_refused_with_the_names_there_are(ref: str) -> None:
    with pytest.raises(NotFoundError) as caught:
        locate_base(ref)
    assert "embedded bases: " in (caught.value.hint or "")


def test_a_folder_that_is_no_base_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a base model"):
        locate_base(str(tmp_path))


def test_the_hash_covers_names_and_contents_of_weights_and_settings(base: Path) -> None:
    before = folder_sha256(base)
    (base / "README.md").write_text("a card")
    assert folder_sha256(base) == before
    (base / "sub/model.safetensors").write_bytes(b"WEIGHTS")
    changed = folder_sha256(base)
    assert changed != before
    (base / "sub/model.safetensors").rename(base / "model.safetensors")
    assert folder_sha256(base) not in (before, changed)
