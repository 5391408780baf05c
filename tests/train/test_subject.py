"""Images of the subject's class: the user's own, and what the base draws beside them."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from hubctl.errors import DataError, InputError
from tests.cli import run_cli
from tests.train import tiny
from tests.train.conftest import Trained, run
from tests.train.test_resume import stopped_at, weights
from train.config import TrainConfig
from train.measure import measure
from train.prepare import prepare
from train.subject import SubjectData, find_class_images, keep_drawn


@pytest.fixture
def config(tmp_path: Path, subject: Trained) -> TrainConfig:
    """A training with two class images of the user's, where five are wanted."""
    folder = tmp_path / "class"
    folder.mkdir()
    for number in range(2):
        # Names after those of drawn ones.
        tiny.picture(50 + number).save(folder / f"dog-{number}.png")
    return dataclasses.replace(
        subject.config, output=tmp_path / "out", class_data=folder, num_class_images=5, steps=4
    )


def test_a_class_folder_may_be_missing(tmp_path: Path, config: TrainConfig) -> None:
    gone = dataclasses.replace(config, class_data=tmp_path / "none")
    for found in (gone, dataclasses.replace(config, class_data=None)):
        classes = find_class_images(found, "0" * 64, 32)
        assert (classes.given, classes.drawn, classes.to_draw) == ((), (), 5)
    without = dataclasses.replace(config, class_data=None, class_prompt=None)
    assert find_class_images(without, "0" * 64, 32).to_draw == 0


def test_what_was_drawn_comes_after_what_was_given_also_the_second_time(
    tmp_path: Path, config: TrainConfig
) -> None:
    assert config.class_data
    whole = run(config)
    assert len(list(config.class_data.iterdir())) == 5
    data = prepare(config, None).data
    assert isinstance(data, SubjectData)
    assert [path.name for path in data.classes.given] == ["dog-0.png", "dog-1.png"]
    assert (len(data.classes.drawn), data.classes.to_draw) == (3, 0)
    again = run(dataclasses.replace(config, output=tmp_path / "again"))
    assert weights(again.folder) == weights(whole.folder)
    # With the user's own alone the base draws the others again.
    for path in data.classes.drawn[:2]:
        path.unlink()
    third = run(dataclasses.replace(config, output=tmp_path / "third"))
    assert weights(third.folder) == weights(whole.folder)
    assert len(list(config.class_data.iterdir())) == 5


def test_a_stop_in_between_changes_nothing(tmp_path: Path, config: TrainConfig) -> None:
    assert config.class_data
    copy = shutil.copytree(config.class_data, tmp_path / "copy")
    whole = run(config)
    halves = dataclasses.replace(config, class_data=copy, output=tmp_path / "halves")
    stopped_at(halves, 2)
    run(dataclasses.replace(halves, resume=True))
    assert weights(halves.output) == weights(whole.folder)


def test_other_class_images_are_another_training(tmp_path: Path, config: TrainConfig) -> None:
    assert config.class_data
    stopped_at(config, 2)
    tiny.picture(77).save(config.class_data / "dog-1.png")
    with pytest.raises(InputError, match="the checkpoint is of another training: data class_sha256 was"):
        run(dataclasses.replace(config, resume=True))


def test_a_recipe_knows_its_class_images(tmp_path: Path, config: TrainConfig) -> None:
    assert config.class_data
    own = shutil.copytree(config.class_data, tmp_path / "own")
    trained = run(config)
    command = ("reproduce", trained.folder, "--data", config.data, "--output", tmp_path / "again", "--json")
    refused = run_cli(*command)
    assert refused.code == 2
    assert "the adapter was trained on class images too" in refused.err
    other = shutil.copytree(own, tmp_path / "other")
    tiny.picture(77).save(other / "dog-1.png")
    refused = run_cli(*command, "--class-data", other)
    assert f"the class images in {other} are not those" in refused.err
    done = run_cli(*command, "--class-data", own)
    assert done.code == 0, done.err
    assert json.loads(done.out.splitlines()[-1])["identical"] is True


def test_what_another_base_or_prompt_drew_is_the_user_s(config: TrainConfig) -> None:
    assert config.class_data
    keep_drawn(find_class_images(config, "0" * 64, 32), [tiny.picture(number) for number in range(3)])
    assert len(find_class_images(config, "0" * 64, 32).drawn) == 3
    for base, side_px, prompt in (("1" * 64, 32, "a dog"), ("0" * 64, 64, "a dog"), ("0" * 64, 32, "a cat")):
        found = find_class_images(dataclasses.replace(config, class_prompt=prompt), base, side_px)
        assert (len(found.given), found.drawn, found.to_draw) == (5, (), 0)


def test_a_drawn_image_that_was_replaced_is_the_user_s_and_stays(config: TrainConfig) -> None:
    keep_drawn(find_class_images(config, "0" * 64, 32), [tiny.picture(number) for number in range(3)])
    before = find_class_images(config, "0" * 64, 32)
    tiny.picture(77).save(before.drawn[1])
    own = before.drawn[1].read_bytes()
    found = find_class_images(config, "0" * 64, 32)
    assert found.given == tuple(sorted((*before.given, before.drawn[1])))
    assert (found.drawn, found.to_draw) == ((), 2)
    assert found.sha256 != before.sha256
    keep_drawn(found, [tiny.picture(0), tiny.picture(5)])
    after = find_class_images(config, "0" * 64, 32)
    assert (len(after.given), len(after.drawn), after.to_draw) == (3, 2, 0)
    assert before.drawn[1].read_bytes() == own
    # Drawn anew, two of each number would be one too many.
    keep_drawn(found, [tiny.picture(0), tiny.picture(6)])
    again = find_class_images(config, "0" * 64, 32)
    assert (again.given, len(again.drawn)) == (after.given, 2)
    assert again.drawn[1] != after.drawn[1]
    assert not after.drawn[1].exists()


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_class_folder_that_cannot_be_is_refused_before_anything_is_drawn(
    tmp_path: Path, config: TrainConfig, place: str
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file") as caught:
        run(dataclasses.replace(config, class_data=tmp_path / place))
    assert "--class-data" in (caught.value.hint or "")
    assert not config.output.exists()


def test_a_broken_class_image_is_named(config: TrainConfig) -> None:
    assert config.class_data
    (config.class_data / "dog-0.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"dog-0\.png is not a readable image"):
        list(measure(config))
