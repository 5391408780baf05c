"""Xet's formats: what clients write is read back, and garbage is refused, never crashed on."""

from __future__ import annotations

import contextlib
import hashlib
import struct

import lz4.frame
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hubctl.errors import InputError
from hubctl.registry.xet_format import (
    MAX_CHUNK_BYTES,
    hash_text,
    parse_shard,
    parse_xorb,
    unpack_chunk,
    xorb_hash,
)
from tests.registry import xet_builder

PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
DIGEST = hashlib.sha256(b"x").hexdigest()
XORB = hashlib.sha256(b"xorb").hexdigest()


@PATIENT
@given(st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=40), st.integers(0, 2))
def test_chunks_come_back(chunks: list[bytes], scheme: int) -> None:
    name, body = xet_builder.xorb(chunks, scheme=scheme, footer=b"XETBLOB\1 and more")
    parsed = parse_xorb(body)
    assert [unpack_chunk(chunk, body) for chunk in parsed] == chunks
    assert xorb_hash(body, parsed) == name


def test_the_hash_is_of_content_not_of_packing() -> None:
    chunks = [bytes([number]) * 100 for number in range(50)]
    names = {xet_builder.xorb(chunks, scheme=scheme)[0] for scheme in range(3)}
    assert len(names) == 1
    assert xet_builder.xorb(chunks[::-1])[0] not in names


def test_files_come_back() -> None:
    terms = [(XORB, 100, 0, 2), (DIGEST, 7, 5, 6)]
    first, second = parse_shard(xet_builder.shard([(DIGEST, terms), (XORB, [])]))
    assert first.sha256 == DIGEST
    assert [(term.xorb, term.size_bytes, term.first, term.last) for term in first.terms] == terms
    assert first.size_bytes == 107
    assert (second.sha256, second.terms) == (XORB, ())


def test_hash_text_is_four_little_endian_numbers() -> None:
    expected = "07060504030201000f0e0d0c0b0a090817161514131211101f1e1d1c1b1a1918"
    assert hash_text(bytes(range(32))) == expected


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "no chunks"),
        (b"XETBLOB", "no chunks"),
        (b"\0\0\0", "within the header"),
        (b"\1" + bytes(7), "unknown version 1"),
        (b"\0\1\0\0\3\1\0\0x", "unknown compression 3"),
        (b"\0\0\0\0\0\0\0\0", "has 0 bytes"),
        (b"\0\1\0\0\0\xff\xff\xff", f"{MAX_CHUNK_BYTES} is the most"),
        (b"\0\xff\0\0\0\xff\0\0", "within chunk 0"),
    ],
)
def test_bad_xorbs(body: bytes, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        parse_xorb(body)


def test_a_chunk_cannot_expand_beyond_its_promise() -> None:
    packed = lz4.frame.compress(bytes(100_000_000))
    body = b"\0" + len(packed).to_bytes(3, "little") + b"\1" + (1000).to_bytes(3, "little") + packed
    with pytest.raises(InputError, match="another size"):
        unpack_chunk(parse_xorb(body)[0], body)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "shorter than its header"),
        (bytes(48), "not a shard"),
        (xet_builder.TAG + struct.pack("<QQ", 3, 0), "unknown version 3"),
        (xet_builder.TAG + struct.pack("<QQ", 2, 0), "ends before"),
        (xet_builder.shard([(DIGEST, [(XORB, 1, 3, 3)])]), "no chunks"),
        (
            xet_builder.TAG + struct.pack("<QQ", 2, 0) + bytes(32) + struct.pack("<IIQ", 0, 0, 0),
            "has no sha256",
        ),
        (
            xet_builder.TAG
            + struct.pack("<QQ", 2, 0)
            + bytes(32)
            + struct.pack("<IIQ", 1 << 30, 2**32 - 1, 0),
            "ends before",
        ),
    ],
)
def test_bad_shards(body: bytes, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        parse_shard(body)


@settings(PATIENT, max_examples=300)
@given(st.data())
def test_garbage_is_refused(data: st.DataObject) -> None:
    good = data.draw(
        st.sampled_from(
            [
                b"",
                xet_builder.xorb([b"abcd" * 50, b"x" * 500], scheme=1)[1],
                xet_builder.xorb([b"abcd" * 50, b"x" * 500], scheme=2, footer=b"XETBLOB")[1],
                xet_builder.shard([(DIGEST, [(XORB, 9, 0, 1)] * 3)]),
            ]
        )
    )
    body = bytearray(good[: data.draw(st.integers(0, len(good)))] if data.draw(st.booleans()) else good)
    for _ in range(data.draw(st.integers(0, 8))):
        if body:
            body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    body += data.draw(st.binary(max_size=100))
    for read in (_read_xorb, parse_shard):
        with contextlib.suppress(InputError):
            read(bytes(body))


def _read_xorb(body: bytes) -> None:
    for chunk in parse_xorb(body):
        assert len(unpack_chunk(chunk, body)) == chunk.size_bytes <= MAX_CHUNK_BYTES
