"""Blocks of bytes compressed with a dictionary that is a sample of the blocks themselves.

The blocks of a file are alike, but each has to be readable alone. So some blocks, spread evenly,
are anchors: each is compressed after those before it, and all together are the dictionary of the
other blocks. A dictionary that consists of anchors takes no bytes of its own in the file.
"""

import dataclasses
import threading
import zlib
from collections.abc import Callable

METHODS = ("deflate", "zstd")
_WINDOW = {"deflate": 1 << 15, "zstd": 1 << 20}  # bytes of a dictionary
_SHARE = 4  # at most a block in so many is an anchor


def anchors(blocks: int, code_bytes: int, method: str) -> list[int]:
    """Which of `blocks` blocks, of `code_bytes` in all, are anchors; they are spread evenly.

    Example:
        >>> anchors(8, 80_000, "zstd")
        [0, 4]
    """
    fitting = _WINDOW[method] * blocks // max(code_bytes, 1)
    return spread(min(fitting, blocks // _SHARE), blocks)


def spread(count: int, blocks: int) -> list[int]:
    """`count` of `blocks` places, spread evenly."""
    return [i * blocks // count for i in range(count)]


@dataclasses.dataclass
class Compressor:
    """Compresses and decompresses blocks by `method`, with what `dictionary` holds.

    Raises:
        ValueError: no such method.
        ImportError: the method is zstd, and the package zstandard is missing.
    """

    method: str
    dictionary: bytes = b""

    def __post_init__(self):
        if self.method not in METHODS:
            raise ValueError(f"no method {self.method!r}, expected {' or '.join(METHODS)}")
        self._lock = threading.Lock()  # zstandard's objects serve one thread at a time
        self._pack, self._unpack = (_zstd if self.method == "zstd" else _deflate)(self.dictionary)

    def compress(self, data: bytes) -> bytes:
        """The compressed block."""
        with self._lock:
            return self._pack(data)

    def decompress(self, data: bytes, most: int) -> bytes:
        """The block; a damaged one takes no more than `most` bytes of memory.

        Raises:
            ValueError: it is not what `compress` returns, or holds more than `most` bytes.
        """
        with self._lock:
            return self._unpack(data, most)


def _deflate(dictionary: bytes) -> tuple[Callable, Callable]:
    """Functions that compress and decompress raw deflate streams (RFC 1951)."""
    options = [dictionary] if dictionary else []

    def pack(data: bytes) -> bytes:
        stream = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, *options)
        return stream.compress(data) + stream.flush()

    def unpack(data: bytes, most: int) -> bytes:
        stream = zlib.decompressobj(-15, *options)
        try:
            found = stream.decompress(data, most + 1)
        except zlib.error as error:
            raise ValueError(f"it is damaged: {error}") from error
        if not stream.eof or stream.unused_data or len(found) > most:
            raise ValueError(f"it is damaged: a block is not whole, or over {most} bytes")
        return found

    return pack, unpack


def _zstd(dictionary: bytes) -> tuple[Callable, Callable]:
    """Functions that compress and decompress frames of zstd (RFC 8878)."""
    try:
        import zstandard
    except ImportError as error:
        raise ImportError('zstd wants zstandard: pip install "jaxmem[data]"') from error
    kind = zstandard.DICT_TYPE_RAWCONTENT
    known = zstandard.ZstdCompressionDict(dictionary, dict_type=kind) if dictionary else None
    reader = zstandard.ZstdDecompressor(dict_data=known)
    writer: list = []  # a compressor is made once it is needed: level 19 takes megabytes

    def pack(data: bytes) -> bytes:
        if not writer:
            writer.append(zstandard.ZstdCompressor(level=19, dict_data=known))
        return writer[0].compress(data)

    def unpack(data: bytes, most: int) -> bytes:
        try:
            if not 0 <= zstandard.frame_content_size(data) <= most:
                raise ValueError(f"it is damaged: a block of unknown size, or over {most} bytes")
            return reader.decompress(data, max_output_size=most)
        except zstandard.ZstdError as error:
            raise ValueError(f"it is damaged: {error}") from error

    return pack, unpack
