"""header, read_header: what stands before the arrays in a file of `save`, and where they lie.

The header is a magic word, the length and CRC-32 of the manifest, and the manifest (JSON: the tree,
the class and static fields of each leaf, the dtype, shape and checksums of each array). An array is
stored as one part, or as one part for each distinct shard.
"""

import dataclasses
import itertools
import json
import json.scanner
import math
import os
import struct
import zlib
from typing import Any, BinaryIO

import jax
import numpy as np

from . import lossless, packed_bytes
from .manifest import named_dtype

MAGIC = b"\x89jaxmem\n"
HEAD = struct.Struct("<8sQI")  # magic, bytes of the manifest, CRC-32 of the manifest
FORMAT = 1
COMPRESSED = 2  # format of a file with compressed arrays

Span = tuple[tuple[int, int], ...]  # (start, stop) along each axis of an array


@dataclasses.dataclass(frozen=True)
class Part:
    """One stored part of an array."""

    span: Span
    crc32: int
    offset: int  # bytes from the start of the file
    nbytes: int  # bytes in the file


@dataclasses.dataclass(frozen=True)
class Slot:
    """An array in a file, not read yet."""

    shape: tuple[int, ...]
    dtype: np.dtype
    parts: tuple[Part, ...]
    numpy: bool  # whether a NumPy array was saved
    compressed: bool

    ndim = property(lambda self: len(self.shape))
    size = property(lambda self: math.prod(self.shape))


def header(
    node: Any,
    arrays: list[np.ndarray | jax.Array],
    spans: list[list[Span]],
    checksums: np.ndarray,
    sizes: np.ndarray | None = None,
) -> bytes:
    """The bytes before the arrays; their length does not depend on `checksums` and `sizes`.

    Args:
        node: the tree as `manifest.describe` made it.
        spans: the parts of each array.
        checksums: CRC-32 of each part, array by array.
        sizes: bytes of each part where arrays are compressed.
    """
    rest, bytes_of = iter(checksums), iter(() if sizes is None else sizes)
    entries = [
        {"dtype": x.dtype.name, "shape": x.shape, "crc32": [f"{next(rest):08x}" for _ in parts]}
        | ({"parts": parts} if len(parts) > 1 else {})
        | ({"numpy": True} if isinstance(x, np.ndarray) else {})
        | ({} if sizes is None else {"bytes": [f"{next(bytes_of):016x}" for _ in parts]})
        for x, parts in zip(arrays, spans)
    ]
    form = FORMAT if sizes is None else COMPRESSED
    manifest = {"format": form, "tree": node, "arrays": entries}
    text = _dumps(manifest).encode()
    return HEAD.pack(MAGIC, len(text), zlib.crc32(text)) + text


def read_header(file: BinaryIO) -> tuple[Any, list[Slot]]:
    """(the tree's description, one slot for each array) of a file that stands at its start.

    Raises:
        ValueError: the file is not one of `save`, is damaged, or has a format of another version.
    """
    length = os.fstat(file.fileno()).st_size
    head = file.read(HEAD.size)
    if len(head) < HEAD.size or not head.startswith(MAGIC):
        raise ValueError("it is not a file that jaxmem.save wrote")
    _, size, crc = HEAD.unpack(head)
    if size > length - HEAD.size:
        raise ValueError(f"it is damaged: {length} bytes, but a manifest of {size}")
    text = file.read(size)
    if zlib.crc32(text) != crc:
        raise ValueError("it is damaged: the manifest does not match its checksum")
    manifest = _loads(text)
    if manifest["format"] not in (FORMAT, COMPRESSED):
        raise ValueError(
            f"it has format {manifest['format']}, this jaxmem reads {FORMAT} and {COMPRESSED}"
        )
    slots, offset = [], HEAD.size + size
    for entry in manifest["arrays"]:
        slot = _slot(entry, offset, compressed=manifest["format"] == COMPRESSED)
        offset += sum(part.nbytes for part in slot.parts)
        slots.append(slot)
    if offset != length:
        raise ValueError(f"it is damaged: {length} bytes, expected {offset}")
    return manifest["tree"], slots


def _dumps(value: Any) -> str:
    """The JSON of `value`; by Python's own encoder if it is too deep for the one in C."""
    encoder = json.JSONEncoder(separators=(",", ":"))
    try:
        return encoder.encode(value)
    except RecursionError:  # Python 3.12 bounds calls in C apart from `sys.setrecursionlimit`
        return "".join(encoder.iterencode(value))


def _loads(text: bytes) -> Any:
    """The value of a JSON text; by Python's own scanner if it is too deep for the one in C."""
    try:
        return json.loads(text)
    except RecursionError:
        decoder = json.JSONDecoder()
        decoder.scan_once = json.scanner.py_make_scanner(decoder)
        return decoder.decode(text.decode())


def _slot(entry: dict, offset: int, *, compressed: bool) -> Slot:
    """The slot of one array's entry in the manifest; its parts start at byte `offset`."""
    shape, dtype = tuple(entry["shape"]), named_dtype(entry["dtype"])
    spans = entry.get("parts", [[(0, n) for n in shape]])
    sizes = [packed_bytes.stored_bytes(span_size(span), dtype) for span in spans]
    if compressed:
        stored = [int(size, 16) for size in entry["bytes"]]
        # A part that claims a higher ratio than deflate reaches is damaged: nothing is allocated.
        if any(raw > lossless.RATIO * size for raw, size in zip(sizes, stored, strict=True)):
            raise ValueError(f"it is damaged: {sum(stored)} bytes for an array {shape}")
        sizes = stored
    parts = []
    for span, crc32, size in zip(spans, entry["crc32"], sizes, strict=True):
        parts.append(Part(tuple(map(tuple, span)), int(crc32, 16), offset, size))
        offset += size
    slot = Slot(shape, dtype, tuple(parts), entry.get("numpy", False), compressed)
    if sum(map(span_size, spans)) != slot.size:
        raise ValueError(f"it is damaged: the parts of an array {shape} do not add up")
    return slot


def spans_of(x: np.ndarray | jax.Array) -> list[Span]:
    """The parts that `x` is stored in: one for each distinct shard."""
    if not isinstance(x, jax.Array):
        return [span_of(x.shape, ())]
    indices = x.sharding.devices_indices_map(x.shape).values()
    return sorted({span_of(x.shape, index) for index in indices})


def span_of(shape: tuple[int, ...], index: tuple[slice, ...]) -> Span:
    """The span that `index` takes of an array of this shape; missing axes are taken whole.

    Example:
        >>> span_of((4, 6), (slice(0, 2),))
        ((0, 2), (0, 6))
    """
    full = itertools.chain(index, itertools.repeat(slice(None)))
    return tuple(s.indices(n)[:2] for s, n in zip(full, shape))


def span_size(span: Span) -> int:
    """How many elements a span has."""
    return math.prod(stop - start for start, stop in span)
