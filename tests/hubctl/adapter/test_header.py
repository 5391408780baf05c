from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save, save_file

from hubctl.adapter.header import (
    ITEM_BYTES,
    MAX_HEADER_BYTES,
    MAX_TENSORS,
    non_finite,
    parse_header,
    read_header,
)
from hubctl.errors import AdapterError
from tests.hubctl.adapter.raw import container, weights

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
OTHERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32,
          torch.uint64, torch.bool)  # fmt: skip
HERE = Path("file.safetensors")


@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8", categories=("L", "N", "P")), min_size=1, max_size=10),
        st.tuples(st.sampled_from([*FLOATS, *OTHERS]), st.lists(st.integers(0, 3), max_size=4)),
        min_size=1,  # of nothing at all, the library writes a file that it cannot read
        max_size=6,
    ),
    st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
)
def test_sound_files_read_as_the_library_wrote_them(
    tensors: dict[str, tuple[torch.dtype, list[int]]], metadata: dict[str, str]
) -> None:
    tensors.pop("__metadata__", None)
    made = {name: torch.zeros(shape).to(dtype) for name, (dtype, shape) in tensors.items()}
    data = save(made, metadata)
    (length,) = struct.unpack("<Q", data[:8])
    header = parse_header(data[8 : 8 + length], size_bytes=len(data), path=HERE)
    assert {name: t.shape for name, t in header.tensors.items()} == {
        n: tuple(t.shape) for n, t in made.items()
    }
    assert header.metadata == metadata
    for name, tensor in header.tensors.items():
        assert tensor.end - tensor.start == made[name].nbytes
        assert ITEM_BYTES[tensor.dtype] == made[name].element_size()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@settings(max_examples=60)
@given(bits=st.lists(st.integers(0, 255), min_size=0, max_size=48))
def test_non_finite_agrees_with_torch_on_any_bits(
    tmp_path_factory: pytest.TempPathFactory, dtype: torch.dtype, bits: list[int]
) -> None:
    whole = bits[: len(bits) // dtype.itemsize * dtype.itemsize]
    tensor = torch.tensor(whole, dtype=torch.uint8).view(dtype) if whole else torch.zeros(0, dtype=dtype)
    path = tmp_path_factory.mktemp("w") / "w.safetensors"
    save_file({"fine": torch.ones(3, dtype=dtype), "x": tensor}, path)
    finite = bool(torch.isfinite(tensor.to(torch.float64)).all())
    assert non_finite(path, read_header(path)) == ([] if finite else ["x"])


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        (dtype, float(value))
        for dtype in FLOATS
        for value in ("nan", "-nan", "inf", "-inf")
        if dtype != torch.float8_e4m3fn or "nan" in value  # it has no infinity
    ],
)
def test_each_kind_of_non_finite_is_found_last_of_many(
    tmp_path: Path, dtype: torch.dtype, value: float
) -> None:
    tensor = torch.ones(1001).to(dtype)
    tensor[-1] = value
    save_file(
        {"a": torch.full((5,), torch.finfo(dtype).max, dtype=dtype), "b": tensor}, tmp_path / "w.safetensors"
    )
    assert non_finite(tmp_path / "w.safetensors", read_header(tmp_path / "w.safetensors")) == ["b"]


def test_integers_are_always_finite(tmp_path: Path) -> None:
    save_file({str(d): torch.full((4,), 1).to(d) for d in OTHERS}, tmp_path / "w.safetensors")
    (tmp_path / "ones.safetensors").write_bytes(
        container({"x": {"dtype": "I16", "shape": [2], "data_offsets": [0, 4]}}, b"\xff" * 4)
    )
    for file in tmp_path.iterdir():
        assert non_finite(file, read_header(file)) == []


def entry(dtype: Any = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


BROKEN = {
    "empty": (b"", "not a safetensors file"),
    "short": (b"\x01\x02", "not a safetensors file"),
    "pickle": (b"PK\x03\x04" + bytes(100), "not a safetensors file"),
    "longer than the file": (struct.pack("<Q", 1000) + b"{}", "not a safetensors file"),
    "longer than memory": (struct.pack("<Q", 2**64 - 1) + b"{}", "not a safetensors file"),
    "no JSON": (container(b"{{"), "header is not JSON"),
    "not UTF-8": (container(b'{"\xff": 1}'), "header is not JSON"),
    "minus zero": (
        container(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[-0,4]}}', bytes(4)),
        "impossible numbers",
    ),
    "NaN": (
        container(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":NaN}}', bytes(4)),
        "header is not JSON",
    ),
    "UTF-16": (container("{}".encode("utf-16-be")), "header is not JSON"),
    "deep JSON": (container(b"[" * 200_000), "header is not JSON"),
    "a list": (container([]), "not a table"),
    "metadata of numbers": (container({"__metadata__": {"a": 1}}), "metadata is not a table of strings"),
    "metadata a list": (container({"__metadata__": []}), "metadata is not a table of strings"),
    "key twice": (
        container(b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
                  b'"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"x"),
        "names a key twice",
    ),
    "field twice": (
        container(b'{"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"x"),
        "names a key twice",
    ),
    "entry a number": (container({"a": 1}), "'a' is malformed"),
    "entry without shape": (container({"a": {"dtype": "U8", "data_offsets": [0, 1]}}, b"x"), "malformed"),
    "one offset": (container({"a": entry(offsets=[0])}, bytes(4)), "malformed"),
    "unknown dtype": (container({"a": entry(dtype="F128")}, bytes(4)), "malformed"),
    "dtype a list": (container({"a": entry(dtype=[])}, bytes(4)), "malformed"),
    "shape a string": (container({"a": entry(shape="")}, bytes(4)), "impossible numbers"),
    "negative shape": (container({"a": entry(shape=[-1])}, bytes(4)), "impossible numbers"),
    "shape of floats": (container({"a": entry(shape=[1.0])}, bytes(4)), "impossible numbers"),
    "shape of booleans": (container({"a": entry(shape=[True])}, bytes(4)), "impossible numbers"),
    "shape beyond 64 bits": (container({"a": entry(shape=[2**70])}, bytes(4)), "impossible numbers"),
    "many dimensions": (container({"a": entry(shape=[1] * 9)}, bytes(4)), "impossible numbers"),
    "shape and bytes differ": (container({"a": entry(shape=[2])}, bytes(4)), "4 bytes, its shape says 8"),
    "end before start": (container({"a": entry(offsets=[4, 0])}, bytes(4)), "'a' has -4 bytes"),
    "overlap": (
        container({"a": entry(), "b": entry(offsets=[2, 6])}, bytes(6)),
        "'b' overlap others or leave a gap",
    ),
    "same bytes": (container({"a": entry(), "b": entry()}, bytes(4)), "overlap others or leave a gap"),
    "gap": (container({"a": entry(offsets=[4, 8])}, bytes(8)), "'a' overlap others or leave a gap"),
    "truncated": (weights({"a": (4, 4)})[:-1], "cut short or has extra bytes"),
    "extra bytes": (weights({"a": (4, 4)}) + b"x", "cut short or has extra bytes"),
    "escape sequence as a name": (container({"\x1b[2J": entry()}, bytes(4)), "that no layer's name has"),
    "lone surrogate as a name": (container(b'{"\\ud800":1}'), "characters that no layer's name has"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_refused(tmp_path: Path, name: str) -> None:
    content, message = BROKEN[name]
    path = tmp_path / "file.safetensors"
    path.write_bytes(content)
    with pytest.raises(AdapterError) as caught:
        read_header(path)
    assert message in caught.value.message
    assert "file.safetensors" in caught.value.message
    caught.value.message.encode()  # it can be printed


# What we refuse beyond the library.
STRICTER = {"many dimensions", "escape sequence as a name", "key twice"}


@pytest.mark.parametrize("name", sorted(set(BROKEN) - STRICTER))
def test_the_library_refuses_them_too(tmp_path: Path, name: str) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(BROKEN[name][0])
    with pytest.raises((SafetensorError, OSError)), safe_open(path, "pt"):
        pass


def test_a_header_bomb_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", MAX_HEADER_BYTES + 1))
        file.truncate(MAX_HEADER_BYTES + 100)  # sparse
    with pytest.raises(AdapterError, match=r"header has 4,194,305 bytes \(limit 4,194,304\)"):
        read_header(path)


def test_too_many_tensors_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(container({str(n): entry("U8", [0], [0, 0]) for n in range(MAX_TENSORS)}))
    assert len(read_header(path).tensors) == MAX_TENSORS
    path.write_bytes(container({str(n): entry("U8", [0], [0, 0]) for n in range(MAX_TENSORS + 1)}))
    with pytest.raises(AdapterError, match="20,001 tensors"):
        read_header(path)


def test_a_missing_file_is_explained(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="No such file"):
        read_header(tmp_path / "none.safetensors")


@given(st.binary(max_size=60) | st.from_regex(rb'\{"a":\{.{0,20}\}\}', fullmatch=True))
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    try:
        parse_header(raw, size_bytes=8 + len(raw), path=HERE)
    except AdapterError:
        return
    assert isinstance(json.loads(raw), dict)
