"""Xet's binary formats and hashes. Pure: bytes in, values out, and only InputError for bytes that are wrong.

A *chunk* is a piece of a file (about 64 KiB), a *xorb* a row of compressed chunks, a *shard* a list of files,
each as *terms*: ranges of chunks in xorbs. Written after the public specification; numbers are little-endian.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import lz4.frame
from blake3 import blake3

from hubctl.errors import InputError

Buffer = bytes | mmap.mmap

MAX_XORB_BYTES = 72 * 1024 * 1024
"""64 MiB of chunks, and room for the footer."""
MAX_SHARD_BYTES = 64 * 1024 * 1024
MAX_CHUNK_BYTES = 1024 * 1024
"""The specification says 128 KiB; clients can be configured to more. Bounds what one chunk may expand to."""

_CHUNK_HEADER_BYTES = 8
_XORB_FOOTER = b"XETBLOB"
_NO_COMPRESSION, _LZ4, _BYTE_GROUPED_LZ4 = range(3)

_SHARD_TAG = b"HFRepoMetaData\0" + bytes.fromhex("556967456a7b815783a5bdd95ccdd14aa9")
_RECORD = struct.Struct("<32s4I")
_SHARD_HEADER = struct.Struct("<32sQQ")
_END_OF_SECTION = b"\xff" * 32
_WITH_VERIFICATION, _WITH_SHA256 = 1 << 31, 1 << 30

_CHUNK_KEY = bytes.fromhex("6697f5775b9550de3135cbaca597181c9de421109beb2b58b4d0b04b93adf229")
_NODE_KEY = bytes.fromhex("017ec5c7a5472996fd946666b48a02e65ddd536f37c76dd2f86352e64a53713f")
_MIN_CHILDREN, _MAX_CHILDREN, _MEAN_CHILDREN = 2, 9, 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """Where a chunk lies in its xorb, and how it is packed."""

    start: int
    packed_bytes: int
    scheme: int
    size_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Term:
    """A piece of a file: the chunks `[first, last)` of a xorb."""

    xorb: str
    size_bytes: int
    first: int
    last: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardFile:
    """A file as a shard describes it."""

    sha256: str
    terms: tuple[Term, ...]

    @property
    def size_bytes(self) -> int:
        """As the terms promise."""
        return sum(term.size_bytes for term in self.terms)


def parse_xorb(data: Buffer) -> list[Chunk]:
    """The chunks of a xorb, in order; their content is not looked at yet.

    Raises:
        InputError: the bytes are not a xorb.
    """
    chunks: list[Chunk] = []
    position = 0
    while position < len(data) and data[position : position + len(_XORB_FOOTER)] != _XORB_FOOTER:
        header = data[position : position + _CHUNK_HEADER_BYTES]
        if len(header) < _CHUNK_HEADER_BYTES:
            raise InputError(f"xorb ends within the header of chunk {len(chunks)}")
        packed, size = int.from_bytes(header[1:4], "little"), int.from_bytes(header[5:8], "little")
        start = position + _CHUNK_HEADER_BYTES
        if header[0] != 0:
            raise InputError(f"chunk {len(chunks)} of the xorb has unknown version {header[0]}")
        if header[4] not in (_NO_COMPRESSION, _LZ4, _BYTE_GROUPED_LZ4):
            raise InputError(f"chunk {len(chunks)} of the xorb has unknown compression {header[4]}")
        if not 0 < size <= MAX_CHUNK_BYTES:
            raise InputError(
                f"chunk {len(chunks)} of the xorb has {size} bytes; {MAX_CHUNK_BYTES} is the most"
            )
        if start + packed > len(data):
            raise InputError(f"xorb ends within chunk {len(chunks)}")
        chunks.append(Chunk(start=start, packed_bytes=packed, scheme=header[4], size_bytes=size))
        position = start + packed
    if not chunks:
        raise InputError("xorb has no chunks")
    return chunks


def unpack_chunk(chunk: Chunk, data: Buffer) -> bytes:
    """The content of a chunk of the xorb `data`.

    Raises:
        InputError: it cannot be unpacked to the size it claims.
    """
    packed = data[chunk.start : chunk.start + chunk.packed_bytes]
    content = packed if chunk.scheme == _NO_COMPRESSION else _decompress(packed, chunk.size_bytes)
    if len(content) != chunk.size_bytes:
        raise InputError(
            f"chunk at byte {chunk.start} unpacks to another size than its {chunk.size_bytes} bytes"
        )
    return _ungroup(content) if chunk.scheme == _BYTE_GROUPED_LZ4 else content


def xorb_hash(data: Buffer, chunks: Sequence[Chunk]) -> str:
    """The hash that names a xorb: a Merkle tree over its unpacked chunks."""
    nodes = [
        (blake3(unpack_chunk(chunk, data), key=_CHUNK_KEY).digest(), chunk.size_bytes) for chunk in chunks
    ]
    while len(nodes) > 1:
        nodes = list(_merge(nodes))
    return hash_text(nodes[0][0])


def parse_shard(data: bytes) -> list[ShardFile]:
    """The files of a shard. What it says about xorbs is not read: the registry looks at the xorbs themselves.

    Raises:
        InputError: the bytes are not a shard, or a file has no sha256.
    """
    if len(data) < _SHARD_HEADER.size:
        raise InputError("shard is shorter than its header")
    tag, version, _footer_bytes = _SHARD_HEADER.unpack_from(data)
    if tag != _SHARD_TAG:
        raise InputError("the bytes are not a shard")
    if version != 2:
        raise InputError(f"shard has unknown version {version}")
    files: list[ShardFile] = []
    position = _SHARD_HEADER.size
    while True:
        name, flags, count, _, _ = _record(data, position)
        position += _RECORD.size
        if name == _END_OF_SECTION:
            return files
        terms = [_term(_record(data, position + index * _RECORD.size)) for index in range(count)]
        position += count * _RECORD.size * (2 if flags & _WITH_VERIFICATION else 1)
        if not flags & _WITH_SHA256:
            raise InputError(f"file {hash_text(name)} of the shard has no sha256")
        sha256 = _record(data, position)[0]
        position += _RECORD.size
        files.append(ShardFile(sha256=hash_text(sha256), terms=tuple(terms)))


def hash_text(raw: bytes) -> str:
    """A 32-byte hash as Xet writes it: hex digits of four little-endian 64-bit numbers."""
    return "".join(raw[start : start + 8][::-1].hex() for start in range(0, 32, 8))


def _record(data: bytes, position: int) -> tuple[bytes, int, int, int, int]:
    if position + _RECORD.size > len(data):
        raise InputError("shard ends before its last record")
    return _RECORD.unpack_from(data, position)


def _term(record: tuple[bytes, int, int, int, int]) -> Term:
    xorb, _flags, size, first, last = record
    if first >= last:
        raise InputError(f"a term of the shard has no chunks: [{first}, {last})")
    return Term(xorb=hash_text(xorb), size_bytes=size, first=first, last=last)


def _decompress(packed: bytes, size: int) -> bytes:
    try:
        # One byte more than promised is enough to see that a chunk expands too far.
        content: bytes = lz4.frame.LZ4FrameDecompressor().decompress(packed, max_length=size + 1)
    except (RuntimeError, EOFError, ValueError) as error:
        raise InputError(f"a chunk of the xorb cannot be decompressed: {error}") from error
    return content


def _ungroup(grouped: bytes) -> bytes:
    """Undo byte grouping: all first bytes of each four, then all second ones, and so on."""
    content = bytearray(len(grouped))
    position = 0
    for offset in range(4):
        count = len(range(offset, len(grouped), 4))
        content[offset::4] = grouped[position : position + count]
        position += count
    return bytes(content)


def _merge(nodes: Sequence[tuple[bytes, int]]) -> Iterator[tuple[bytes, int]]:
    """One level of the tree: groups of 2 to 9 nodes, ended by a hash that 4 divides."""
    start = 0
    while start < len(nodes):
        end = min(start + _MAX_CHILDREN, len(nodes))
        for index in range(start + _MIN_CHILDREN, end):
            if int.from_bytes(nodes[index][0][24:], "little") % _MEAN_CHILDREN == 0:
                end = index + 1
                break
        group = nodes[start:end]
        lines = "".join(f"{hash_text(raw)} : {size}\n" for raw, size in group)
        yield blake3(lines.encode(), key=_NODE_KEY).digest(), sum(size for _, size in group)
        start = end
