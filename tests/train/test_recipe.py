"""A recipe makes the same adapter again, or says why not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hubctl.errors import AdapterError
from tests.cli import run_cli
from tests.registry_server import RegistryServer
from tests.train.conftest import Trained
from train.recipe import RECIPE, config_from, current_versions, read_recipe


def reproduce(trained: Trained, output: Path, *more: str) -> dict[str, object]:
    done = run_cli(
        "reproduce", trained.folder, "--data", trained.config.data, "--output", output, *more, "--json"
    )
    assert done.code == 0, done.err
    answer: dict[str, object] = json.loads(done.out.splitlines()[-1])
    return answer


@pytest.mark.parametrize("task", ["style", "trimap"])
def test_the_same_data_make_the_same_bytes(task: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    trained: Trained = request.getfixturevalue(task)
    answer = reproduce(trained, tmp_path / "again")
    assert answer["event"] == "compared"
    assert answer["identical"] is True
    assert answer["versions"] == {}
    assert (tmp_path / "again" / RECIPE).read_bytes() == (trained.folder / RECIPE).read_bytes()


def test_other_data_are_refused_before_training(tmp_path: Path, style: Trained, masked: Path) -> None:
    del masked
    other = tmp_path / "other"
    other.mkdir()
    for path in style.config.data.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    (other / "metadata.jsonl").write_text((other / "metadata.jsonl").read_text().replace("apple", "pear"))
    done = run_cli("reproduce", style.folder, "--data", other, "--output", tmp_path / "again")
    assert done.code == 2
    assert "is not what the adapter was trained on: 4 images" in done.err
    assert not (tmp_path / "again").exists()


def test_the_recipe_names_no_path_of_the_machine(style: Trained, subject: Trained) -> None:
    for trained in (style, subject):
        text = (trained.folder / RECIPE).read_text().replace(json.dumps(str(trained.base)), "")
        assert str(trained.folder.parent) not in text


def test_a_recipe_is_read_strictly(tmp_path: Path, style: Trained) -> None:
    with pytest.raises(AdapterError, match=r"has no recipe\.lock"):
        read_recipe(tmp_path)
    good = json.loads((style.folder / RECIPE).read_text())
    assert good["versions"] == current_versions()
    for broken in ("{", "[]", json.dumps(good | {"format": 2})):
        (tmp_path / RECIPE).write_text(broken)
        with pytest.raises(AdapterError):
            read_recipe(tmp_path)
    (tmp_path / RECIPE).write_text(json.dumps(good | {"settings": good["settings"] | {"magic": 1}}))
    with pytest.raises(AdapterError, match="malformed"):
        config_from(read_recipe(tmp_path), data=tmp_path, output=tmp_path / "out")


def test_the_configuration_comes_back(tmp_path: Path, subject: Trained) -> None:
    config = config_from(
        read_recipe(subject.folder), data=tmp_path, output=tmp_path / "out", class_data=tmp_path / "class"
    )
    assert (config.steps, config.batch_size, config.rank, config.alpha) == (3, 2, 4, 2.0)
    assert config.instance_prompt == "a photo of tok dog"
    assert config.targets == ("attention",)


def test_a_recipe_travels_by_the_registry(tmp_path: Path, style: Trained, registry: RegistryServer) -> None:
    env: dict[str, Any] = {"HF_ENDPOINT": registry.endpoint, "HUBCTL_TOKEN": registry.token("rita")}
    pushed = run_cli("push", style.folder, "--repo", "rita/style", **env)
    assert pushed.code == 0, pushed.err
    done = run_cli(
        "reproduce",
        "rita/style",
        "--data",
        style.config.data,
        "--output",
        tmp_path / "again",
        "--json",
        **env,
    )
    assert done.code == 0, done.err
    assert json.loads(done.out.splitlines()[-1])["identical"] is True
