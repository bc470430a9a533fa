"""GGUF: the fields and the tensors of one file; the header is read at once, tensors when used.

The header is parsed here, and every length in it is checked against the size of the file. Quantised
types are decoded by the `gguf` package.
"""

import dataclasses
import math
import os
import pathlib
import struct
from typing import Any, BinaryIO

import numpy as np

from ..core.lazy import Lazy
from . import byte_ranges

_SCALARS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
DECODED_NUMBERS = 1 << 18  # numbers decoded at once: they fit the cache of a core; 256 divides it


@dataclasses.dataclass(frozen=True)
class Gguf:
    """The fields of a GGUF file, and its tensors by llama.cpp's names, read when they are used.

    `places` has the first byte and the type of each tensor, `spans` the first byte and the end of
    each field in the file.
    """

    path: pathlib.Path
    fields: dict[str, Any]
    tensors: dict[str, Lazy]
    places: dict[str, tuple[int, Any]] = dataclasses.field(default_factory=dict)
    spans: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)

    def kind(self, name: str) -> str:
        """The name of a tensor's type, such as Q4_K."""
        return self.places[name][1].name

    def blocks(self, name: str) -> np.ndarray:
        """The undecoded bytes of a tensor: uint8 (rows, bytes of a row)."""
        from gguf import GGML_QUANT_SIZES

        (offset, kind), shape = self.places[name], self.tensors[name].shape
        block, block_bytes = GGML_QUANT_SIZES[kind]
        width = shape[-1] // block * block_bytes
        count = math.prod(shape[:-1]) * width
        return byte_ranges.part(self.path, offset, count, np.dtype("u1")).reshape(-1, width)


def gguf(path: pathlib.Path) -> Gguf:
    """Opens a GGUF file and reads its header.

    Raises:
        ValueError: The file is no whole GGUF file of version 2 or 3, or is one part of several.
        ImportError: The `gguf` package is missing.
    """
    try:
        with path.open("rb") as file:
            header = _header(path, file)
    except (ValueError, KeyError, struct.error) as error:
        raise ValueError(f"{path} is no whole GGUF file: {error}") from error
    if header.fields.get("split.count", 0) > 1:
        raise ValueError(f"{path} is one of {header.fields['split.count']} parts; merge them first")
    return header


def encoded_fields(path: pathlib.Path, prefix: str) -> dict[str, bytes]:
    """The undecoded bytes of the fields whose names begin with `prefix`."""
    spans = {name: span for name, span in gguf(path).spans.items() if name.startswith(prefix)}
    read = lambda begin, end: byte_ranges.part(path, begin, end - begin, np.dtype("u1")).tobytes()
    return {name: read(*span) for name, span in spans.items()}


def _header(path: pathlib.Path, file: BinaryIO) -> Gguf:
    """Reads the fields and the places of the tensors from the beginning of an open file."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    size = os.fstat(file.fileno()).st_size
    magic, version, tensor_count, field_count = _unpack(file, size, "4sIQQ")
    if magic != b"GGUF" or version not in (2, 3):
        raise ValueError(f"it begins with {magic!r} and version {version}, expected GGUF 2 or 3")
    fields, spans = {}, {}
    for _ in range(field_count):
        begin, name = file.tell(), _string(file, size)
        fields[name] = _value(file, size, *_unpack(file, size, "I"))
        spans[name] = begin, file.tell()
    infos = {}
    for _ in range(tensor_count):
        name = _string(file, size)
        (rank,) = _unpack(file, size, "I")
        shape = _unpack(file, size, f"{rank}Q")[::-1]
        infos[name] = (shape, *_unpack(file, size, "IQ"))
    alignment = fields.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise ValueError(f"an alignment of {alignment}")
    start = -(-file.tell() // alignment) * alignment
    tensors, places = {}, {}
    for name, (shape, type_number, offset) in infos.items():
        kind = GGMLQuantizationType(type_number)
        block, block_bytes = GGML_QUANT_SIZES[kind]
        if not shape or shape[-1] % block:
            raise ValueError(f"{name} of shape {shape} is not in blocks of {block}")
        end = start + offset + math.prod(shape) // block * block_bytes
        if end > size:
            raise ValueError(f"{name} ends at byte {end} of {size}")
        read = lambda _=None, location=(path, start + offset, shape, kind): _tensor(*location)
        tensors[name] = Lazy(shape, np.dtype("float32"), read)
        places[name] = start + offset, kind
    return Gguf(path, fields, tensors, places, spans)


def _unpack(file: BinaryIO, size: int, form: str) -> tuple:
    """The next numbers of a file of `size` bytes; `form` is a format string of `struct`."""
    length = struct.calcsize("<" + form)
    if length > size - file.tell():
        raise ValueError(f"{size} bytes end in its header")
    return struct.unpack("<" + form, file.read(length))


def _string(file: BinaryIO, size: int) -> str:
    """The next string of a file of `size` bytes: its length as u64, then UTF-8."""
    # A vocabulary has hundreds of thousands of strings, and `_unpack` is slower than this.
    length = int.from_bytes(file.read(8), "little")
    text = file.read(min(length, size))
    if len(text) != length:
        raise ValueError(f"{size} bytes end in its header")
    return text.decode("utf-8", "replace")


def _value(file: BinaryIO, size: int, kind: int) -> Any:
    """The next value of a file of `size` bytes; `kind` is the number of its GGUF type."""
    if kind == _STRING:
        return _string(file, size)
    if kind != _ARRAY:
        return _unpack(file, size, _SCALARS[kind])[0]
    kind, count = _unpack(file, size, "IQ")
    if kind == _STRING:
        return [_string(file, size) for _ in range(count)]
    return list(_unpack(file, size, f"{count}{_SCALARS[kind]}"))


def _tensor(path: pathlib.Path, offset: int, shape: tuple[int, ...], kind: Any) -> np.ndarray:
    """Decodes a tensor of the type `kind` from byte `offset` to float32."""
    from gguf import GGML_QUANT_SIZES, dequantize

    block, block_bytes = GGML_QUANT_SIZES[kind]
    out = np.empty(math.prod(shape), np.float32)
    for begin in range(0, out.size, DECODED_NUMBERS):
        chunk = out[begin : begin + DECODED_NUMBERS]
        count = chunk.size // block * block_bytes
        data = byte_ranges.part(path, offset + begin // block * block_bytes, count, np.dtype("u1"))
        try:
            chunk[:] = dequantize(data, kind)
        except NotImplementedError as error:
            raise ValueError(f"{path} holds {kind.name} tensors, which cannot be read") from error
    return out.reshape(shape)
