"""Tokens: token ids on disk in half the bytes of uint16, read at any place.

Ids are ranked by frequency and written as dense codes, in blocks that are compressed with a sample
of themselves as the dictionary. A block is readable alone, and checked by its CRC-32.

A file is: a head of fixed size; the frequency classes of all ids, compressed; the length and the
CRC-32 of each block; the blocks. Numbers are little-endian.
"""

import contextlib
import os
import pathlib
import struct
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from ..core.arguments import Kind, takes
from . import block_compression, dense_codes
from .block_compression import Compressor

MAGIC, VERSION = b"JMTOKENS", 1
# magic, version, method, bytes of classes, ids, ids in a block, vocabulary, anchors, CRC-32
HEAD = struct.Struct("<8sHHIQIIII")
MOST_VOCABULARY = 1 << 24
MOST_BLOCK = 1 << 22  # ids: a reader holds one block, and 12 bytes of each of its ids
FILE = Kind("a path", lambda x: isinstance(x, str | os.PathLike))
PLACE = np.dtype([("size", "<u4"), ("crc", "<u4")])


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
        fixed = HEAD.size + classes + blocks * PLACE.itemsize
        possible = 0 < block <= MOST_BLOCK and vocabulary <= MOST_VOCABULARY and anchors <= blocks
        if not possible or fixed > self.nbytes or method >= len(block_compression.METHODS):
            raise ValueError("it is damaged: its head is not that of a file of this size")
        packed, places = file.read(classes), file.read(blocks * PLACE.itemsize)
        if zlib.crc32(places, zlib.crc32(packed, zlib.crc32(head[:-4]))) != crc:
            raise ValueError("it is damaged: its head and index have another CRC-32")
        self._places = np.frombuffer(places, PLACE)
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
