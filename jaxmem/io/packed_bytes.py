"""write, read_into: an array as bytes of a file with a CRC-32, sub-byte numbers packed.

Numbers of 1, 2 or 4 bits share a byte, the first number in the low bits. Other numbers take whole
bytes, low byte first. CRC-32 detects every change within 32 consecutive bits.
"""

import math
import zlib
from collections.abc import Iterator
from typing import BinaryIO

import jax
import numpy as np
from jax import lax

# Bytes of memory that are packed at a time. Blocks this large return to the system when freed.
CHUNK = 1 << 25


def stored_bytes(size: int, dtype: np.dtype) -> int:
    """Bytes that `size` numbers of a dtype take in a file.

    Example:
        >>> import jax.numpy as jnp
        >>> stored_bytes(5, jnp.dtype("int4")), stored_bytes(5, jnp.dtype("bfloat16"))
        (3, 10)
    """
    return -(-size * _stored_bits(dtype) // 8)


def write(file: BinaryIO, piece: np.ndarray | jax.Array) -> int:
    """Writes an array at the file's position; returns the CRC-32 of its bytes."""
    crc = 0
    for raw in raw_parts(piece):
        crc = zlib.crc32(raw, crc)
        file.write(raw)
    return crc


def raw_parts(piece: np.ndarray | jax.Array) -> Iterator[np.ndarray]:
    """The bytes of an array as a file has them, from about CHUNK bytes of memory at a time."""
    bits = _stored_bits(piece.dtype)
    for part in _parts(piece):
        flat = np.ascontiguousarray(part, np.dtype(part.dtype.name)).reshape(-1).view(np.uint8)
        yield flat if bits >= 8 else _pack(flat, bits)


def _parts(piece: np.ndarray | jax.Array) -> Iterator[np.ndarray]:
    """The rows of an array, about CHUNK bytes at a time, so that little is copied to the host."""
    rows = len(piece) if piece.ndim else 1
    row_size = max(1, piece.size // max(rows, 1))
    unit = 8 // math.gcd(row_size, 8)  # rows that fill whole bytes, even of 1-bit numbers
    step = max(unit, CHUNK // row_size // unit * unit)
    for start in range(0, rows, step):
        if isinstance(piece, np.ndarray):
            yield piece[start : start + step] if piece.ndim else piece
        elif rows <= step and _is_read_in_place(piece):
            yield np.asarray(piece)
        elif rows <= step:
            yield np.asarray(piece.copy())  # without the copy, JAX would cache the bytes on `piece`
        else:  # one program for all starts, unlike piece[a:b]
            yield np.asarray(lax.dynamic_slice_in_dim(piece, start, min(step, rows - start)))


def _is_read_in_place(piece: jax.Array) -> bool:
    """Whether NumPy sees the memory of an array: a CPU's, with whole bytes for each number."""
    on_cpu = all(device.platform == "cpu" for device in piece.devices())
    return on_cpu and len(piece.devices()) == 1 and _stored_bits(piece.dtype) >= 8


def read_into(file: BinaryIO, piece: np.ndarray, size: int) -> int:
    """Fills `piece` from the next `size` bytes of the file; returns their CRC-32."""
    bits, crc = _stored_bits(piece.dtype), 0
    flat, per = piece.reshape(-1).view(np.uint8), max(1, 8 // bits)
    for i in range(0, size, CHUNK // per):
        part = flat[i * per : i * per + CHUNK]
        raw = part if per == 1 else np.empty(-(-part.size // per), np.uint8)
        file.readinto(raw)
        crc = zlib.crc32(raw, crc)
        if per > 1:
            _unpack(raw, part, bits)
    return crc


def put(piece: np.ndarray, at: int, raw: np.ndarray) -> None:
    """Fills an array with bytes as a file has them, from the array's stored byte `at` on."""
    bits, flat = _stored_bits(piece.dtype), piece.reshape(-1).view(np.uint8)
    if bits >= 8:
        flat[at : at + raw.size] = raw
    else:
        per = 8 // bits
        _unpack(raw, flat[at * per : (at + raw.size) * per], bits)


def _pack(numbers: np.ndarray, bits: int) -> np.ndarray:
    """Packs numbers of a byte each, 8 // bits numbers per byte, the first in the low bits."""
    per = 8 // bits
    packed = np.zeros(-(-numbers.size // per), np.uint8)
    for i in range(per):
        row = numbers[i::per]
        packed[: row.size] |= (row & (2**bits - 1)) << (bits * i)
    return packed


def _unpack(packed: np.ndarray, numbers: np.ndarray, bits: int) -> None:
    """Fills `numbers`, a byte each, from what `_pack` returned."""
    per = 8 // bits
    for i in range(per):
        row = numbers[i::per]
        row[...] = packed[: row.size] >> (bits * i) & (2**bits - 1)


def _stored_bits(dtype: np.dtype) -> int:
    """Bits that one number takes in a file."""
    bits = jax.dtypes.itemsize_bits(dtype)
    return bits if bits in (1, 2, 4) else 8 * dtype.itemsize
