"""write, read_into: an array compressed without loss, as planes of bytes with Huffman codes.

The signs and low bits of trained weights look random, so they do not compress, but the exponents
are alike. So the first bytes of all numbers are stored together, then the second bytes, and so on;
the sign bit is moved behind the exponent. zlib's entropy coder compresses each plane by itself:
bfloat16 weights shrink to 0.66. (Hershcovitch et al., 2024: ZipNN. zlib's Huffman codes alone were
3 % smaller than zstd.) A plane of repeated bytes, such as zeros, is compressed by matches instead.

A stored part is a sequence of chunks. Each chunk is: its raw bytes as a count, the length of each
plane's stream, and the streams.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

import jax
import numpy as np

from . import packed_bytes

SAMPLE = 1 << 16  # bytes at the start of a plane that decide between `_STRATEGIES`
RATIO = 1032  # the highest compression that deflate reaches; a claim of more is a damaged file
_STRATEGIES = ((6, zlib.Z_HUFFMAN_ONLY), (1, zlib.Z_DEFAULT_STRATEGY))
# The exponent of these crosses a byte unless the sign bit before it is rotated to the end.
_ROTATED = ("bfloat16", "float32", "float64")


def write(file: BinaryIO, piece: np.ndarray | jax.Array) -> tuple[int, int]:
    """Writes an array at the file's position; returns the CRC-32 and the count of written bytes."""
    crc = size = 0
    for raw in packed_bytes.raw_parts(piece):
        streams = [_deflated(plane) for plane in _planes(raw, piece.dtype)]
        lengths = struct.pack(f"<{1 + len(streams)}I", raw.size, *map(len, streams))
        for data in (lengths, *streams):
            crc, size = zlib.crc32(data, crc), size + len(data)
            file.write(data)
    return crc, size


def read_into(file: BinaryIO, piece: np.ndarray, stored: int) -> int:
    """Fills `piece` from the next `stored` bytes of the file; returns their CRC-32.

    Memory is limited to `piece` and one chunk, even if the file is damaged.

    Raises:
        ValueError: the bytes are not the streams of as many numbers.
    """
    head, crc, at = struct.Struct(f"<{1 + _count(piece.dtype)}I"), 0, 0
    whole = packed_bytes.stored_bytes(piece.size, piece.dtype)

    def take(length: int) -> bytes:
        nonlocal stored, crc
        data = file.read(length) if length <= stored else b""
        if len(data) != length:
            raise ValueError("it is damaged: its compressed arrays end early")
        stored, crc = stored - length, zlib.crc32(data, crc)
        return data

    while at < whole:
        size, *lengths = head.unpack(take(head.size))
        if not 0 < size <= whole - at or size % len(lengths):
            raise ValueError(f"it is damaged: a chunk of {size} bytes where {whole - at} are left")
        planes = [_inflated(take(length), size // len(lengths)) for length in lengths]
        packed_bytes.put(piece, at, _joined(planes, piece.dtype))
        at += size
    if stored:
        raise ValueError(f"it is damaged: {stored} bytes follow a compressed array")
    return crc


def _count(dtype: np.dtype) -> int:
    """How many planes of bytes a dtype has."""
    return dtype.itemsize if dtype.itemsize in (2, 4, 8) else 1


def _planes(raw: np.ndarray, dtype: np.dtype) -> Iterator[np.ndarray]:
    """The planes of raw bytes: all numbers' first bytes, then all second bytes, and so on."""
    count = _count(dtype)
    if dtype.name in _ROTATED:
        whole = raw.view(f"<u{count}")
        raw = (whole << 1 | whole >> 8 * count - 1).view(np.uint8)
    yield from (np.ascontiguousarray(raw[i::count]) for i in range(count))


def _joined(planes: list[np.ndarray], dtype: np.dtype) -> np.ndarray:
    """The raw bytes whose planes `_planes` returned."""
    count = len(planes)
    raw = np.empty(count * planes[0].size, np.uint8)
    for i, plane in enumerate(planes):
        raw[i::count] = plane
    if dtype.name in _ROTATED:
        whole = raw.view(f"<u{count}")
        raw = (whole >> 1 | whole << 8 * count - 1).view(np.uint8)
    return raw


def _deflated(plane: np.ndarray) -> bytes:
    """The deflate stream of a plane, by the strategy that is better for the plane's start."""

    def deflate(data: memoryview, level: int, strategy: int) -> bytes:
        coder = zlib.compressobj(level, zlib.DEFLATED, -15, 9, strategy)
        return coder.compress(data) + coder.flush()

    data = memoryview(plane)
    best = min(_STRATEGIES, key=lambda options: len(deflate(data[:SAMPLE], *options)))
    return deflate(data, *best)


def _inflated(stream: bytes, size: int) -> np.ndarray:
    """The plane of `size` bytes that `_deflated` compressed."""
    coder = zlib.decompressobj(-15)
    try:
        data = coder.decompress(stream, size)
        more = not coder.eof and coder.decompress(coder.unconsumed_tail, 1)
    except zlib.error as error:
        raise ValueError(f"it is damaged: {error}") from error
    if len(data) != size or more or not coder.eof or coder.unused_data:
        raise ValueError(f"it is damaged: a stream is not of {size} bytes")
    return np.frombuffer(data, np.uint8)
