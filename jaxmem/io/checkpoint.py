"""save, load: any tree of arrays and encoded leaves in one file that describes itself.

A file is a magic word, the length and CRC-32 of the manifest, the manifest (JSON: the tree, the
class and static fields of each leaf, the dtype, shape and checksums of each array), then the bytes
of the arrays with nothing between, sub-byte numbers packed. So every byte is under a checksum, the
same tree gives the same bytes, one rename replaces a file, and one array at a time is in transit.
With `compress` the bytes of each array are squeezed, and the manifest says how many they are.
A file without takes at most `nbytes(tree)` + 1 KiB + 1 KiB an array + 128 bytes a shard.

Not Orbax: 0.12.8 returned some 20 of 80 single altered bytes as data, took up to twice the bytes
to restore, and its directory of randomly named files cannot be replaced by one rename.
"""

import dataclasses
import itertools
import json
import math
import os
import pathlib
import secrets
import struct
import zlib
from collections.abc import Iterable
from glob import escape
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from . import lossless, packed_bytes
from .manifest import describe, known_classes, named_dtype, rebuild

MAGIC = b"\x89jaxmem\n"
HEAD = struct.Struct("<8sQI")  # magic, bytes of the manifest, its CRC-32
FORMAT = 1
COMPRESSED = 2

Span = tuple[tuple[int, int], ...]  # (start, stop) along each axis


def save(path: str | os.PathLike, tree: Any, *, compress: bool = False) -> None:
    """Writes `tree` to the file `path`, which is replaced in one step once all is on the disk.

    Takes dicts, lists, tuples, named tuples, None, strings, Python and NumPy scalars, arrays of
    JAX and NumPy, encoded leaves and other dataclasses, flax `FrozenDict` and nnx `State`. Of a
    sharded array each process writes its own shards, into a file system that all share. A save
    that is killed leaves the old file whole and a `.tmp` beside it, which the next save removes:
    one writer at a time. `compress` writes fewer bytes, without loss: about 0.66 of dense bfloat16
    weights, little less than all of packed codes; `load` reads it as any other.

    Raises:
        TypeError: the tree holds something else; the message says where.
        ValueError: `path` is a directory, processes save trees that are not alike, or several
            processes are to compress one file.

    Example:
        >>> import tempfile, jax.numpy as jnp
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(f"{folder}/w.jm", {"w": jnp.arange(4, dtype=jnp.int4), "step": 3})
        ...     load(f"{folder}/w.jm")
        {'w': Array([0, 1, 2, 3], dtype=int4), 'step': 3}
    """
    path = pathlib.Path(path)
    if path.is_dir():
        raise ValueError(f"cannot save to {path}: it is a directory, expected a file")
    arrays: list[np.ndarray | jax.Array] = []
    node = describe(tree, arrays)
    spans = [_spans(x) for x in arrays]
    sums = np.zeros(sum(map(len, spans)), np.uint32)
    sizes = np.zeros(len(sums), np.uint64) if compress else None
    together, first = jax.process_count() > 1, jax.process_index() == 0
    if together and compress:
        raise ValueError(f"cannot compress {path}: several processes write it")
    token = secrets.randbits(32)
    if together:
        token = _agreed(token, zlib.crc32(_head(node, arrays, spans, sums)))
    temporary = path.with_name(f".{path.name}.{token:08x}.tmp")
    if first:
        path.parent.mkdir(parents=True, exist_ok=True)
        for leftover in path.parent.glob(f".{escape(path.name)}.*.tmp"):
            leftover.unlink(missing_ok=True)
        temporary.touch(exist_ok=False)
    if together:
        multihost_utils.sync_global_devices("jaxmem.save: the file is there")
    try:
        with open(temporary, "r+b") as file:
            file.seek(len(_head(node, arrays, spans, sums, sizes)))
            _write_pieces(file, arrays, spans, sums, sizes)
            _flush(file)
            if together:
                sums = multihost_utils.process_allgather(sums).max(axis=0)
            if first:
                file.seek(0)
                file.write(_head(node, arrays, spans, sums, sizes))
                _flush(file)
        if first:
            os.replace(temporary, path)
            _flush_directory(path.parent)
    finally:
        if first:
            temporary.unlink(missing_ok=True)
    if together:
        multihost_utils.sync_global_devices("jaxmem.save: the file is in place")


def load(path: str | os.PathLike, *, classes: Iterable[type] = (), shardings: Any = None) -> Any:
    """The tree that `save` wrote; no template is needed.

    Classes of leaves are looked up by name in jaxmem and in `classes`, where your own dataclasses
    and named tuples go. `shardings` is one `jax.sharding.Sharding`, a tree of them that fits the
    saved tree or a prefix of it, or a function that makes one of the tree of shapes; a process
    reads only the pieces that its devices want, whoever wrote them. Without it, arrays go to the
    default device. What was NumPy's comes back as NumPy's.

    Raises:
        ValueError: not a file of `save`, truncated or altered, a class that is not known, or a
            64-bit array while `jax_enable_x64` is off; the message names the file.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        raise ValueError(f"cannot load {path}: it is a directory, expected a file")
    try:
        with open(path, "rb") as file:
            node, slots = _read_head(file)
            known = known_classes(classes)
            tree = rebuild(node, slots, known)
            where = {}
            if shardings is not None:
                given = shardings(tree) if callable(shardings) else shardings
                wide = jax.tree.broadcast(given, tree)
                where = {id(x): s for x, s in zip(jax.tree.leaves(tree), jax.tree.leaves(wide))}
            arrays = [_read(file, slot, where.get(id(slot))) for slot in slots]
            return rebuild(node, arrays, known)
    except ValueError as error:
        raise ValueError(f"cannot load {path}: {error}") from error


@dataclasses.dataclass(frozen=True)
class _Slot:
    """An array in a file, not read yet."""

    shape: tuple[int, ...]
    dtype: np.dtype
    parts: tuple[tuple[Span, int, int], ...]  # where in the array, CRC-32, where in the file
    numpy: bool
    stored: tuple[int, ...] | None  # bytes of each part where they are compressed

    ndim = property(lambda self: len(self.shape))
    size = property(lambda self: math.prod(self.shape))


def _head(
    node: Any,
    arrays: list,
    spans: list[list[Span]],
    sums: np.ndarray,
    sizes: np.ndarray | None = None,
) -> bytes:
    """Everything before the arrays; its length does not depend on `sums` and `sizes`."""
    rest, bytes_of = iter(sums), iter(() if sizes is None else sizes)
    entries = [
        {"dtype": x.dtype.name, "shape": x.shape, "crc32": [f"{next(rest):08x}" for _ in parts]}
        | ({"parts": parts} if len(parts) > 1 else {})
        | ({"numpy": True} if isinstance(x, np.ndarray) else {})
        | ({} if sizes is None else {"bytes": [f"{next(bytes_of):016x}" for _ in parts]})
        for x, parts in zip(arrays, spans)
    ]
    form = FORMAT if sizes is None else COMPRESSED
    manifest = {"format": form, "tree": node, "arrays": entries}
    text = json.dumps(manifest, separators=(",", ":")).encode()
    return HEAD.pack(MAGIC, len(text), zlib.crc32(text)) + text


def _read_head(file: BinaryIO) -> tuple[Any, list[_Slot]]:
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
    manifest = json.loads(text)
    if manifest["format"] not in (FORMAT, COMPRESSED):
        raise ValueError(
            f"it has format {manifest['format']}, this jaxmem reads {FORMAT} and {COMPRESSED}"
        )
    slots, offset = [], HEAD.size + size
    for entry in manifest["arrays"]:
        shape, dtype = tuple(entry["shape"]), named_dtype(entry["dtype"])
        spans = entry.get("parts", [[(0, n) for n in shape]])
        sizes = [packed_bytes.stored_bytes(_size(span), dtype) for span in spans]
        stored = None
        if manifest["format"] == COMPRESSED:
            stored = tuple(int(size, 16) for size in entry["bytes"])
            if any(raw > lossless.RATIO * size for raw, size in zip(sizes, stored, strict=True)):
                raise ValueError(f"it is damaged: {sum(stored)} bytes for an array {shape}")
        parts = []
        for span, crc32, size in zip(spans, entry["crc32"], stored or sizes, strict=True):
            parts.append((tuple(map(tuple, span)), int(crc32, 16), offset))
            offset += size
        slots.append(_Slot(shape, dtype, tuple(parts), entry.get("numpy", False), stored))
        if sum(map(_size, spans)) != slots[-1].size:
            raise ValueError(f"it is damaged: the parts of an array {shape} do not add up")
    if offset != length:
        raise ValueError(f"it is damaged: {length} bytes, expected {offset}")
    return manifest["tree"], slots


def _agreed(token: int, crc: int) -> int:
    """Process 0's token, once all processes say that they write the same head."""
    said = multihost_utils.process_allgather(np.array([token, crc], np.uint32))
    for i, (_, other) in enumerate(said.tolist()):
        if other != said[0, 1]:
            raise ValueError(f"process {i} saves another tree than process 0, or places it apart")
    return int(said[0, 0])


def _spans(x: np.ndarray | jax.Array) -> list[Span]:
    """The pieces that `x` is stored in: one for each different shard."""
    if not isinstance(x, jax.Array):
        return [_span(x.shape, ())]
    indices = x.sharding.devices_indices_map(x.shape).values()
    return sorted({_span(x.shape, index) for index in indices})


def _span(shape: tuple[int, ...], index: tuple[slice, ...]) -> Span:
    full = itertools.chain(index, itertools.repeat(slice(None)))
    return tuple(s.indices(n)[:2] for s, n in zip(full, shape))


def _size(span: Span) -> int:
    return math.prod(stop - start for start, stop in span)


def _write_pieces(
    file: BinaryIO,
    arrays: list,
    spans: list[list[Span]],
    sums: np.ndarray,
    sizes: np.ndarray | None,
) -> None:
    """Writes what this process holds, from where the file stands; fills in checksums and sizes."""
    offset, n = file.tell(), 0
    for x, parts in zip(arrays, spans):
        if isinstance(x, jax.Array):
            shards = [s for s in x.addressable_shards if s.replica_id == 0]
            mine = {_span(x.shape, s.index): s.data for s in shards}
        else:
            mine = {parts[0]: x} if jax.process_index() == 0 else {}
        for span in parts:
            size = packed_bytes.stored_bytes(_size(span), x.dtype)
            if span in mine:
                file.seek(offset)
                if sizes is None:
                    sums[n] = packed_bytes.write(file, mine[span])
                else:
                    sums[n], size = lossless.write(file, mine[span])
                    sizes[n] = size
            offset, n = offset + size, n + 1


def _read(file: BinaryIO, slot: _Slot, sharding: jax.sharding.Sharding | None) -> Any:
    native = slot.numpy and sharding is None
    if not native and jax.dtypes.canonicalize_dtype(slot.dtype) != slot.dtype:
        raise ValueError(f"it holds an array of {slot.dtype}; set jax_enable_x64 to load it")
    wanted = [_span(slot.shape, ())]
    if sharding is not None:
        indices = sharding.addressable_devices_indices_map(slot.shape).values()
        wanted = [_span(slot.shape, index) for index in indices]
    host = np.empty(slot.shape, slot.dtype)  # pages nobody fills take no memory
    for i, (span, crc, offset) in enumerate(slot.parts):
        if any(all(a < d and c < b for (a, b), (c, d) in zip(span, w)) for w in wanted):
            file.seek(offset)
            piece = host if len(slot.parts) == 1 else np.empty([b - a for a, b in span], host.dtype)
            size = packed_bytes.stored_bytes(_size(span), slot.dtype)
            if slot.stored is None:
                found = packed_bytes.read_into(file, piece, size)
            else:
                found = lossless.read_into(file, piece, slot.stored[i])
            if found != crc:
                what = f"an array of {slot.dtype} {slot.shape}"
                raise ValueError(f"it is damaged: {what} does not match its checksum")
            if piece is not host:
                host[tuple(slice(*ends) for ends in span)] = piece
    if sharding is not None:
        return jax.make_array_from_callback(slot.shape, sharding, lambda index: host[index])
    return host if native else jnp.asarray(host)


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _flush_directory(folder: pathlib.Path) -> None:
    """Makes a rename outlive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
