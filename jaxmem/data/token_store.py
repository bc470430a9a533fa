"""write, Tokens: token ids on disk in half the bytes of uint16, read at any place.

Ids are ranked by frequency and written as dense codes, in blocks that are compressed with a sample
of themselves as the dictionary. A block is readable alone, and checked by its CRC-32.

A file is: a head of fixed size; the frequency classes of all ids, compressed; the length and the
CRC-32 of each block; the blocks. Numbers are little-endian.
"""

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

MAGIC, VERSION = b"JMTOKENS", 1
# magic, version, method, bytes of classes, ids, ids in a block, vocabulary, anchors, CRC-32
HEAD = struct.Struct("<8sHHIQIIII")
MOST_VOCABULARY = 1 << 24
MOST_BLOCK = 1 << 22  # ids: a reader holds one block, and 12 bytes of each of its ids
FILE = Kind("a path", lambda x: isinstance(x, str | os.PathLike))
IDS = Kind(
    "token ids, or an iterable of arrays of them",
    lambda x: (
        hasattr(x, "dtype")
        or isinstance(x, Tokens)
        or (isinstance(x, Iterable) and not isinstance(x, str | bytes | Mapping))
    ),
)
_CHUNK = 1 << 20  # ids that a writer looks at together
_PLACE = np.dtype([("size", "<u4"), ("crc", "<u4")])


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


class Tokens:
    """The ids of a file that `write` wrote: `tokens[i]`, `tokens[i:j]` (j - i,) i32, `len(tokens)`.

    A slice reads the blocks that it touches, and nothing else. The file's head, its frequency
    classes and the blocks of its dictionary are read when it is opened. It is a
    `RandomAccessDataSource` of grain, can be read by many threads, and is pickled as its path.

    Raises:
        ValueError: the file is no token store, is damaged, or of a newer version; the message has
            its name. Damage in a block is found when the block is read.
        ImportError: the file is compressed by zstd, and zstandard is missing.
        OSError: the file cannot be read.
    """

    @takes(path=FILE)
    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path)
        with self._named(), self.path.open("rb") as file:
            self._open(file)

    def __len__(self) -> int:
        return self._count

    def __repr__(self) -> str:
        return f"Tokens({str(self.path)!r}): {self._count} ids in {self.nbytes} bytes"

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"])

    def __getitem__(self, at: int | slice) -> np.ndarray | np.int32:
        if isinstance(at, slice):
            start, stop, step = at.indices(self._count)
            if step != 1:
                raise ValueError(f"tokens are read one after the other, not in steps of {step}")
            return self._read(start, max(stop, start))
        start = at + self._count if at < 0 else at
        if not 0 <= start < self._count:
            raise IndexError(f"token {at} of {self._count}")
        return self._read(start, start + 1)[0]

    def chunks(self, size: int = 1 << 16, *, start: int = 0) -> Iterator[np.ndarray]:
        """Yields the ids from `start` on, `size` at a time (size,) i32; the last are fewer.

        Raises:
            ValueError: `size` is not positive, or `start` is not in the file.
        """
        if size < 1 or not 0 <= start <= self._count:
            raise ValueError(f"chunks of {size} from {start}, in a file of {self._count} ids")
        for at in range(start, self._count, size):
            yield self._read(at, min(at + size, self._count))

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Errors name the file."""
        try:
            yield
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from error

    def _open(self, file: BinaryIO) -> None:
        """Reads what stands before the blocks, and checks each length before it is believed."""
        self.nbytes = os.fstat(file.fileno()).st_size
        head = file.read(HEAD.size)
        if len(head) < HEAD.size or not head.startswith(MAGIC):
            raise ValueError("it is no token store; jm.data.write writes one")
        _, version, method, classes, count, block, vocabulary, anchors, crc = HEAD.unpack(head)
        if version != VERSION:
            raise ValueError(f"it has version {version}, expected {VERSION}")
        blocks = -(-count // max(block, 1))
        fixed = HEAD.size + classes + blocks * _PLACE.itemsize
        possible = 0 < block <= MOST_BLOCK and vocabulary <= MOST_VOCABULARY and anchors <= blocks
        if not possible or fixed > self.nbytes or method >= len(block_compression.METHODS):
            raise ValueError("it is damaged: its head is not that of a file of this size")
        packed, places = file.read(classes), file.read(blocks * _PLACE.itemsize)
        if zlib.crc32(places, zlib.crc32(packed, zlib.crc32(head[:-4]))) != crc:
            raise ValueError("it is damaged: its head and index have another CRC-32")
        self._places = np.frombuffer(places, _PLACE)
        self._starts = fixed + np.cumsum(self._places["size"], dtype=np.int64)
        self._starts -= self._places["size"]
        if fixed + int(self._places["size"].sum(dtype=np.int64)) != self.nbytes:
            raise ValueError(f"it is damaged: {self.nbytes} bytes are not those of its blocks")
        table = Compressor("deflate").decompress(packed, vocabulary)
        if len(table) != vocabulary:
            raise ValueError(f"it is damaged: {len(table)} classes of {vocabulary} ids")
        ids = dense_codes.ids_by_rank(np.frombuffer(table, np.uint8))
        self._decoder = dense_codes.Decoder(ids)
        self._count, self._block = count, block
        name = block_compression.METHODS[method]
        self._anchors, dictionary = {}, b""
        for place in block_compression.spread(anchors, blocks):
            data = self._compressed(file, place)
            self._anchors[place] = Compressor(name, dictionary).decompress(data, self._most(place))
            dictionary += self._anchors[place]
        self._compressor = Compressor(name, dictionary)

    def _most(self, place: int) -> int:
        """The most bytes of the codes of a block."""
        return dense_codes.MOST_BYTES * self._ids_in(place)

    def _ids_in(self, place: int) -> int:
        return min(self._block, self._count - place * self._block)

    def _compressed(self, file: BinaryIO, place: int) -> bytes:
        """The bytes of a block as they stand in the file, checked."""
        size, crc = self._places[place].tolist()
        file.seek(int(self._starts[place]))
        data = file.read(size)
        if zlib.crc32(data) != crc:
            raise ValueError(f"it is damaged: block {place} has another CRC-32")
        return data

    def _read(self, start: int, stop: int) -> np.ndarray:
        """The ids (stop - start,) i32. Blocks are decoded some at a time, which is faster."""
        out = np.empty(stop - start, np.int32)
        if not out.size:
            return out
        places, together = range(start // self._block, -(-stop // self._block)), _group(self._block)
        with self._named(), self.path.open("rb") as file:
            for i in range(0, len(places), together):
                group = places[i : i + together]
                count = sum(map(self._ids_in, group))
                codes = b"".join(self._codes(file, place) for place in group)
                first = group[0] * self._block
                ids = self._decoder.decode(codes, count)[max(start - first, 0) : stop - first]
                at = max(first, start) - start
                out[at : at + len(ids)] = ids
        return out

    def _codes(self, file: BinaryIO, place: int) -> bytes:
        """The codes of a block."""
        if place in self._anchors:
            return self._anchors[place]
        data = self._compressed(file, place)
        return self._compressor.decompress(data, self._most(place))


def _group(block: int) -> int:
    """How many blocks are decoded together."""
    return max(1, (1 << 16) // block)


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
    places = np.zeros(blocks, _PLACE)
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
