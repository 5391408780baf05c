"""The cache of encoded images and prompts: it changes nothing but the time."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tests.train import tiny
from tests.train.conftest import Trained, run
from train.encoded import EncodedStore, to_forget

CPU = torch.device("cpu")


def test_an_entry_is_made_once_and_belongs_to_what_it_was_made_of(tmp_path: Path) -> None:
    made: list[str] = []

    def store(base: str) -> EncodedStore:
        return EncodedStore(tmp_path, {"base": base})

    def encode(name: str) -> dict[str, torch.Tensor]:
        made.append(name)
        return {"mean": torch.full((2,), float(len(made)))}

    first = store("a").get(["x"], lambda: encode("a x"), CPU)
    again = store("a").get(["x"], lambda: encode("a x again"), CPU)
    assert torch.equal(first["mean"], again["mean"])
    store("b").get(["x"], lambda: encode("b x"), CPU)
    store("a").get(["x", "y"], lambda: encode("a x y"), CPU)
    store("a").get(["y", "x"], lambda: encode("a y x"), CPU)
    assert made == ["a x", "b x", "a x y", "a y x"]


def test_a_broken_entry_is_made_again_and_a_full_folder_is_no_fault(tmp_path: Path) -> None:
    store = EncodedStore(tmp_path / "store", {})
    store.get(["x"], lambda: {"mean": torch.ones(2)}, CPU)
    (path,) = (tmp_path / "store").iterdir()
    path.write_bytes(path.read_bytes()[:20])
    assert store.get(["x"], lambda: {"mean": torch.zeros(2)}, CPU)["mean"].tolist() == [0, 0]
    (tmp_path / "file").touch()
    unwritable = EncodedStore(tmp_path / "file", {})
    assert unwritable.get(["x"], lambda: {"mean": torch.ones(1)}, CPU)["mean"].item() == 1


def test_the_longest_unused_go_first(tmp_path: Path) -> None:
    store = EncodedStore(tmp_path, {}, limit_bytes=1500)
    for name in "abc":
        store.get([name], lambda: {"mean": torch.zeros(150)}, CPU)  # 600 bytes and a header
    assert len(list(tmp_path.iterdir())) == 2


@given(
    st.lists(st.tuples(st.text(), st.integers(0, 100), st.floats(0, 1e9)), unique_by=lambda f: f[0]),
    st.integers(0, 400),
)
def test_no_more_go_than_must(files: list[tuple[str, int, float]], limit: int) -> None:
    gone = to_forget(files, limit)
    kept = [file for file in files if file[0] not in gone]
    assert sum(size for _, size, _ in kept) <= limit
    if gone:
        last = next(file for file in files if file[0] == gone[-1])
        assert sum(size for _, size, _ in kept) + last[1] > limit
        assert all(file[2] >= last[2] for file in kept)


@pytest.mark.parametrize("task", ["style", "subject"])
def test_a_training_with_the_cache_is_the_one_without_bit_by_bit(
    task: str, tmp_path: Path, home: Path, request: pytest.FixtureRequest
) -> None:
    trained: Trained = request.getfixturevalue(task)
    run(dataclasses.replace(trained.config, output=tmp_path / "fills"))
    entries = sorted((home / "cache" / "encoded").iterdir())
    assert entries
    again = run(dataclasses.replace(trained.config, output=tmp_path / "reads"))
    name = "pytorch_lora_weights.safetensors"
    assert (again.folder / name).read_bytes() == (trained.folder / name).read_bytes()
    assert sorted((home / "cache" / "encoded").iterdir()) == entries
    # And it is read: what is in it is what is learnt.
    for path in entries:
        save_file({name: value + 1 for name, value in load_file(path).items()}, path)
    other = run(dataclasses.replace(trained.config, output=tmp_path / "misled"))
    assert (other.folder / name).read_bytes() != (trained.folder / name).read_bytes()


def test_another_picture_under_the_same_name_is_encoded_anew(tmp_path: Path, style: Trained) -> None:
    data = tiny.captioned_folder(tmp_path / "data")
    first = run(dataclasses.replace(style.config, data=data, output=tmp_path / "a", sample_every=0))
    tiny.picture(9).save(data / "0.png")
    second = run(dataclasses.replace(style.config, data=data, output=tmp_path / "b", sample_every=0))
    name = "pytorch_lora_weights.safetensors"
    assert (first.folder / name).read_bytes() != (second.folder / name).read_bytes()
