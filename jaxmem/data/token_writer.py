"""write: token ids counted, ranked, coded and compressed, in a file that `Tokens` reads."""

import contextlib
import os
import pathlib
import struct
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np

from ..core.arguments import POSITIVE, Kind, takes
from ..io.atomic import replacing
from . import block_compression, dense_codes
from .block_compression import Compressor
from .token_store import FILE, HEAD, MAGIC, MOST_BLOCK, MOST_VOCABULARY, PLACE, VERSION, Tokens

IDS = Kind(
    "token ids, or an iterable of arrays of them",
    lambda x: (
        hasattr(x, "dtype")
        or isinstance(x, Tokens)
        or (isinstance(x, Iterable) and not isinstance(x, str | bytes | Mapping))
    ),
)
_CHUNK = 1 << 20  # ids that a writer looks at together


@takes(path=FILE, ids=IDS, block=POSITIVE)
def write(
    path: str | os.PathLike,
    ids: np.ndarray | Iterable[np.ndarray],
    *,
    block: int = 4096,
    method: str = "deflate",
) -> int:
    """Writes token ids to a file that `Tokens` reads; returns the file's size in bytes.

    The file appears whole or not at all. Memory does not grow with the number of ids: an iterable
    of arrays is kept in a temporary file beside `path`, as ids are counted before they are encoded.

    Args:
        path: the file.
        ids: integers (n,) from 0 to 2**24 - 1, such as an array or a `numpy.memmap`; or an iterable
            of such arrays.
        block: ids in a block, which a read decodes as a whole: fewer for random access, up to
            2**22 for the smallest file.
        method: "deflate", which every Python has, or "zstd", which is about 4 % smaller in blocks
            of 4,096 and wants the package zstandard.

    Raises:
        ValueError: an id is negative or too large, `ids` has more axes than one, or `block` or
            `method` is none of the above.
        TypeError: the ids are no integers.
        ImportError: the method is zstd, and zstandard is missing.

    Example:
        >>> import pathlib, tempfile
        >>> import numpy as np
        >>> import jaxmem as jm
        >>> ids = np.random.default_rng(0).zipf(1.5, 100_000) % 50_000
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     size = jm.data.write(pathlib.Path(folder, "train.tokens"), ids)
        ...     store = jm.data.Tokens(pathlib.Path(folder, "train.tokens"))
        ...     len(store), store[50_000:50_004].tolist() == ids[50_000:50_004].tolist()
        (100000, True)
        >>> 1.9 < 2 * len(ids) / size
        True
    """
    if block > MOST_BLOCK:
        raise ValueError(f"block is {block!r}, expected 1 to {MOST_BLOCK} ids")
    Compressor(method)  # an unknown method, or a missing package, is said first
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _at_once(ids, path.parent) as array, replacing(path) as temporary:
        with temporary.open("r+b") as file:
            _write(file, array, block, method)
        return temporary.stat().st_size


@contextlib.contextmanager
def _at_once(ids: Any, folder: pathlib.Path) -> Iterator[np.ndarray | Tokens]:
    """`ids` as one array that can be sliced: an iterable of arrays is put on the disk first."""
    if isinstance(ids, Tokens) or hasattr(ids, "dtype"):
        yield ids
        return
    with tempfile.TemporaryFile(dir=folder) as file:
        for part in ids:
            _checked(np.asarray(part).reshape(-1)).astype("<u4").tofile(file)
        file.flush()
        empty = file.tell() == 0  # which no memmap can be
        yield np.empty(0, "<u4") if empty else np.memmap(file, "<u4", "r")


def _checked(ids: np.ndarray) -> np.ndarray:
    """`ids` if they are what a store holds."""
    if ids.size == 0:
        return ids.astype(np.int32)
    if not np.issubdtype(ids.dtype, np.integer):
        raise TypeError(f"ids are of type {ids.dtype}, expected integers")
    if ids.ndim != 1:
        raise ValueError(f"ids have the shape {ids.shape}, expected one axis")
    least, most = int(ids.min()), int(ids.max())
    if least < 0 or most >= MOST_VOCABULARY:
        raise ValueError(f"ids are from {least} to {most}, expected 0 to {MOST_VOCABULARY - 1}")
    return ids


def _write(file: BinaryIO, ids: np.ndarray | Tokens, block: int, method: str) -> None:
    """Writes the head, the index and the blocks of `ids` to an empty file."""
    if getattr(ids, "ndim", 1) != 1:
        raise ValueError(f"ids have the shape {ids.shape}, expected one axis")
    # 1. How often each id occurs.
    counts = np.zeros(0, np.int64)
    for at in range(0, len(ids), _CHUNK):
        found = np.bincount(_checked(np.asarray(ids[at : at + _CHUNK])))
        size = max(len(found), len(counts))
        counts, found = (np.pad(c, (0, size - len(c))) for c in (counts, found))
        counts = counts + found
    classes = dense_codes.frequency_classes(counts)
    ranks = np.empty(len(classes), np.int32)
    ranks[dense_codes.ids_by_rank(classes)] = np.arange(len(classes), dtype=np.int32)
    blocks = -(-len(ids) // block)

    def codes(place: int) -> bytes:
        part = np.asarray(ids[place * block : (place + 1) * block])
        return dense_codes.encode(ranks[part.astype(np.int64)])

    # 2. The anchors, as many as a sample says that the dictionary takes.
    sample = [len(codes(i)) for i in block_compression.spread(min(blocks, 16), blocks)]
    expected = int(np.mean(sample) * blocks) if sample else 0
    packed_anchors, dictionary = {}, b""
    for place in block_compression.anchors(blocks, expected, method):
        packed_anchors[place] = Compressor(method, dictionary).compress(codes(place))
        dictionary += codes(place)

    # 3. All blocks, behind the room for the head and the index.
    packed = Compressor("deflate").compress(classes.tobytes())
    places = np.zeros(blocks, PLACE)
    file.seek(HEAD.size + len(packed) + places.nbytes)
    compressor = Compressor(method, dictionary)
    for place in range(blocks):
        data = packed_anchors.get(place) or compressor.compress(codes(place))
        places[place] = len(data), zlib.crc32(data)
        file.write(data)
    number = block_compression.METHODS.index(method)
    fields = (MAGIC, VERSION, number, len(packed), len(ids), block, len(classes))
    head = HEAD.pack(*fields, len(packed_anchors), 0)[:-4]
    crc = zlib.crc32(places.tobytes(), zlib.crc32(packed, zlib.crc32(head)))
    file.seek(0)
    file.write(head + struct.pack("<I", crc) + packed + places.tobytes())
