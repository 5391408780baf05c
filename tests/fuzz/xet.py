"""Fuzzing the readers of what Xet clients send: xorbs with their chunks, and shards."""

from __future__ import annotations

import contextlib
import sys

import atheris

with atheris.instrument_imports(include=["hubctl.registry.xet_format"]):
    from hubctl.registry.xet_format import MAX_CHUNK_BYTES, parse_shard, parse_xorb, unpack_chunk, xorb_hash

from hubctl.errors import InputError


def read(data: bytes) -> None:
    """One input, as both."""
    with contextlib.suppress(InputError):
        chunks = parse_xorb(data)
        for chunk in chunks:
            assert len(unpack_chunk(chunk, data)) == chunk.size_bytes <= MAX_CHUNK_BYTES
        assert len(xorb_hash(data, chunks)) == 64
    with contextlib.suppress(InputError):
        for file in parse_shard(data):
            assert all(term.first < term.last for term in file.terms)


if __name__ == "__main__":
    atheris.Setup(sys.argv, read)
    atheris.Fuzz()
