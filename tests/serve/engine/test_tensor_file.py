from __future__ import annotations

import gc
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hubctl.adapter.header import ITEM_BYTES, read_header
from hubctl.errors import AdapterError
from serve.engine.tensor_file import _DTYPES, open_tensors


def test_every_dtype_is_what_the_library_reads(tmp_path: Path) -> None:
    assert _DTYPES.keys() == ITEM_BYTES.keys()
    noise = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    tensors = {name: (9 * noise.abs()).to(dtype) for name, dtype in _DTYPES.items()}
    tensors |= {"one": torch.tensor(7), "none": torch.zeros(0, 4), "odd": torch.ones(3, dtype=torch.uint8)}
    save_file(tensors, tmp_path / "x.safetensors")
    want = load_file(tmp_path / "x.safetensors")
    with open_tensors(tmp_path / "x.safetensors", read_header(tmp_path / "x.safetensors")) as read:
        for name, tensor in want.items():
            got = read(name)
            assert (got.dtype, got.shape) == (tensor.dtype, tensor.shape)
            assert torch.equal(got.flatten().view(torch.uint8), tensor.flatten().view(torch.uint8))


def test_nothing_is_kept_of_what_was_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({str(i): torch.full((30, 30), float(i)) for i in range(20)}, path)
    header = read_header(path)

    def read_all(times: int) -> int:
        for _ in range(times):
            with open_tensors(path, header) as read:
                for name in header.tensors:
                    read(name)
        gc.collect()
        return sys.getallocatedblocks()

    read_all(2)
    before = read_all(1)
    # The library itself would keep two objects of each of 1,000 tensors.
    assert read_all(50) - before < 100


def test_a_file_that_was_cut_short_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"x": torch.ones(100)}, path)
    header = read_header(path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(AdapterError, match="cut short"), open_tensors(path, header):
        pass
