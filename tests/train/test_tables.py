"""`hubctl data pull`: datasets of the stock library, from a real registry, into folders to train on."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from huggingface_hub import HfApi
from PIL import Image

from hubctl.errors import DataError
from tests.cli import run_cli
from tests.registry_server import RegistryServer
from tests.train import tiny
from train.dataset import read_captions
from train.masks import read_masks
from train.tables import choose_columns, write_dataset


@pytest.fixture(autouse=True)
def no_bars() -> None:
    datasets.disable_progress_bars()


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Four pictures, one of them a JPEG."""
    (tmp_path / "pictures").mkdir()
    paths = [tmp_path / "pictures" / f"{n}.{'jpg' if n == 3 else 'png'}" for n in range(4)]
    for number, path in enumerate(paths):
        tiny.picture(number).save(path)
    return [str(path) for path in paths]


def embedded(file: str | None) -> dict[str, bytes] | None:
    return None if file is None else {"bytes": Path(file).read_bytes()}


def table(columns: dict[str, Any], images: tuple[str, ...] = ("image",)) -> Any:
    """A dataset with its pictures in it, given as files, as it is published."""
    pictures = {name: [embedded(file) for file in columns[name]] for name in images}
    made: Any = datasets.Dataset.from_dict(columns | pictures)
    for name in images:
        made = made.cast_column(name, datasets.Image())
    return made


def test_a_parquet_dataset_of_a_registry_becomes_captioned_splits_byte_for_byte(
    tmp_path: Path, registry: RegistryServer, files: list[str]
) -> None:
    parts = tmp_path / "parts"
    parts.mkdir()
    table({"image": files[1:], "text": ["a", "b", "é"], "n": [1, 2, 3]}).to_parquet(parts / "train-0.parquet")
    table({"image": files[:1], "text": ["d"], "n": [4]}).to_parquet(parts / "test-0.parquet")
    api = HfApi(endpoint=registry.endpoint, token=registry.token("tabea"))
    api.create_repo("tabea/drawings", repo_type="dataset", private=True)
    api.upload_folder(repo_id="tabea/drawings", folder_path=parts, path_in_repo="data", repo_type="dataset")
    env: dict[str, Any] = {"HF_ENDPOINT": registry.endpoint, "HF_TOKEN": str(api.token)}
    ran = run_cli("data", "pull", "tabea/drawings", tmp_path / "out", "--json", **env)
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["images"] == 4
    data = read_captions(tmp_path / "out")
    assert [item.caption for item in data.train] == ["a", "b", "é"]
    assert [item.path.read_bytes() for item in data.train] == [Path(file).read_bytes() for file in files[1:]]
    assert [item.path.suffix for item in data.train] == [".png", ".png", ".jpg"]
    assert [item.caption for item in data.test] == ["d"]
    stranger = run_cli("data", "pull", "tabea/drawings", tmp_path / "no", HF_ENDPOINT=registry.endpoint)
    assert stranger.code != 0
    assert "tabea/drawings" in stranger.err
    assert not (tmp_path / "no").exists()
    again = run_cli("data", "pull", "tabea/drawings", tmp_path / "out", **env)
    assert "exists already" in again.err


def test_masks_come_beside_their_images(tmp_path: Path, files: list[str]) -> None:
    masks = []
    for number in range(4):
        mask = np.zeros((tiny.SIDE_PX, tiny.SIDE_PX), np.uint8)
        mask[number : number + 4] = 1
        masks.append(str(tmp_path / f"mask-{number}.bmp"))
        Image.fromarray(mask).save(masks[-1])
    source = tmp_path / "source"
    source.mkdir()
    table({"image": files, "annotation": masks}, ("image", "annotation")).to_parquet(source / "a.parquet")
    assert list(write_dataset(source, tmp_path / "out", limit=3)) == [(1, 3), (2, 3), (3, 3)]
    data = read_masks(tmp_path / "out")
    assert len(data.train) == 3
    assert [int(item.classes().argmax(0)[0]) for item in data.train] == [0, 1, 2]


def test_rows_that_lack_something_are_left_out(tmp_path: Path, files: list[str]) -> None:
    source = tmp_path / "source"
    source.mkdir()
    columns = {"image": [*files[:3], None], "text": ["a", None, " ", "d"]}
    table(columns).to_parquet(source / "captions.parquet")
    assert list(write_dataset(source, tmp_path / "captions")) == [(1, 4)]
    assert [item.caption for item in read_captions(tmp_path / "captions").train] == ["a"]
    masked = {"image": files[:2], "mask": [None, files[2]]}
    (source / "captions.parquet").unlink()
    table(masked, ("image", "mask")).to_parquet(source / "masks.parquet")
    assert list(write_dataset(source, tmp_path / "masks")) == [(1, 2)]
    assert [path.name for path in (tmp_path / "masks" / "images").iterdir()] == ["000001.png"]


def test_files_beside_the_table_are_read_and_no_others_of_this_machine(
    tmp_path: Path, files: list[str]
) -> None:
    source = tmp_path / "dataset" / "files"
    source.mkdir(parents=True)
    with zipfile.ZipFile(source / "train.zip", "w") as archive:
        archive.write(files[0], "a.png")
        archive.writestr("metadata.jsonl", '{"file_name": "a.png", "text": "a red apple"}\n')
    list(write_dataset(source, tmp_path / "archived"))
    (item,) = read_captions(tmp_path / "archived").train
    assert (item.caption, item.path.read_bytes()) == ("a red apple", Path(files[0]).read_bytes())
    (source / "train.zip").rename(source / "pictures")
    kinds = "---\ndataset_info:\n  features:\n  - {name: image, dtype: image}\n---\n"
    (source / "README.md").write_text(kinds)
    for name in (
        "pictures",
        files[0],
        f"file://{files[0]}::pictures",
        "nowhere.png",
        "a\0.png",
        "http://a/b",
    ):
        (source / "a.jsonl").write_text(json.dumps({"image": {"bytes": None, "path": name}}))
        with pytest.raises(DataError, match="row 0"):
            list(write_dataset(source, tmp_path / "no"))


def test_pictures_of_telephones_are_jpegs_and_masks_that_png_cannot_hold_are_refused(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    photo, mask = tmp_path / "photo.jpg", tmp_path / "mask.jpg"
    tiny.picture(0).save(photo, "MPO", save_all=True, append_images=[tiny.picture(1)])
    tiny.picture(2).convert("CMYK").save(mask)
    table({"image": [str(photo)], "mask": [str(mask)]}, ("image", "mask")).to_parquet(source / "a.parquet")
    with pytest.raises(DataError, match="the mask in row 0"):
        list(write_dataset(source, tmp_path / "no"))
    table({"image": [str(photo)]}).to_parquet(source / "a.parquet")
    list(write_dataset(source, tmp_path / "out"))
    assert (tmp_path / "out" / "000000.jpg").read_bytes() == photo.read_bytes()


def test_a_split_alone_and_columns_by_name(tmp_path: Path, files: list[str]) -> None:
    source = tmp_path / "source"
    source.mkdir()
    both = {"first": files[:2], "second": files[2:], "words": ["x", "y"]}
    table(both, ("first", "second")).to_parquet(source / "validation.parquet")
    done = write_dataset(source, tmp_path / "out", split="validation", image="second", caption="words")
    assert list(done)[-1] == (2, 2)
    data = read_captions(tmp_path / "out")
    assert [item.path.read_bytes() for item in data.train] == [Path(file).read_bytes() for file in files[2:]]
    with pytest.raises(DataError, match="no split 'tset'") as caught:
        list(write_dataset(source, tmp_path / "no", split="tset"))
    assert "validation" in (caught.value.hint or "")


def test_what_is_missing_is_said_with_what_is_there(tmp_path: Path) -> None:
    features = datasets.Features(
        {"img": datasets.Image(), "label": datasets.Value("int64"), "cap": datasets.Value("string")}
    )
    found = choose_columns(features)
    assert (found.image, found.caption, found.mask) == ("img", None, None)
    with pytest.raises(DataError, match="no column 'text'") as caught:
        choose_columns(features, caption="text")
    assert "img, label, cap" in (caught.value.hint or "")
    for wrong in ({"image": "cap"}, {"mask": "label"}):
        with pytest.raises(DataError, match="holds no images") as caught:
            choose_columns(features, **wrong)
        assert caught.value.hint == "those with images are: img"
    with pytest.raises(DataError, match="'label' holds no texts"):
        choose_columns(features, caption="label")
    with pytest.raises(DataError, match="no column holds images"):
        choose_columns(datasets.Features({"a": datasets.Value("string")}))
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "notes.xyz").write_text("nothing")
    with pytest.raises(DataError, match="cannot be read as a dataset"):
        list(write_dataset(tmp_path / "source", tmp_path / "out"))
