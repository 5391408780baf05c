"""Builds xorbs and shards as Xet clients do, for tests of the side that reads them."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

import lz4.frame

from hubctl.registry.xet_format import hash_text, parse_xorb, xorb_hash

TAG = bytes.fromhex("48465265706f4d6574614461746100556967456a7b815783a5bdd95ccdd14aa9")
END = b"\xff" * 32 + bytes(16)
Term = tuple[str, int, int, int]
"""Xorb hash, size in bytes, first chunk, last chunk (exclusive)."""


def xorb(chunks: Sequence[bytes], *, scheme: int = 0, footer: bytes = b"") -> tuple[str, bytes]:
    """A xorb of these chunks and its hash."""
    body = b"".join(_chunk(chunk, scheme) for chunk in chunks) + footer
    return xorb_hash(body, parse_xorb(body)), body


def shard(files: Sequence[tuple[str, Sequence[Term]]]) -> bytes:
    """A shard of files, each as (sha256, terms)."""
    records = [TAG + struct.pack("<QQ", 2, 0)]
    for sha256, terms in files:
        flags = 1 << 31 | 1 << 30
        records.append(bytes(32) + struct.pack("<IIQ", flags, len(terms), 0))
        for name, size, first, last in terms:
            records.append(raw(name) + struct.pack("<4I", 0, size, first, last))
        records += [bytes(48)] * len(terms)
        records.append(raw(sha256) + bytes(16))
    return b"".join([*records, END, END])


def one_file(content: bytes) -> tuple[str, bytes, bytes]:
    """A file as one xorb of 64 KiB chunks: the xorb's hash, the xorb, the shard."""
    chunks = [content[start : start + 65536] for start in range(0, len(content), 65536)]
    name, body = xorb(chunks, scheme=1)
    digest = hashlib.sha256(content).hexdigest()
    return name, body, shard([(digest, [(name, len(content), 0, len(chunks))])])


def raw(text: str) -> bytes:
    """The 32 bytes of a hash as Xet writes it; `hash_text` turned around."""
    value = b"".join(bytes.fromhex(text[start : start + 16])[::-1] for start in range(0, 64, 16))
    assert hash_text(value) == text
    return value


def _chunk(content: bytes, scheme: int) -> bytes:
    packed = content
    if scheme == 2:
        packed = b"".join(content[offset::4] for offset in range(4))
    if scheme:
        packed = lz4.frame.compress(packed)
    sizes = len(packed).to_bytes(3, "little"), len(content).to_bytes(3, "little")
    return bytes([0]) + sizes[0] + bytes([scheme]) + sizes[1] + packed
