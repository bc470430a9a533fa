"""GGUF: the fields and the tensors of one file, header now and tensors as they are used.

The header is parsed here, where every length is checked against the file before it is believed;
the formulas of the quantised types are those of the `gguf` package.
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
_CHUNK = 1 << 18  # numbers dequantised at once, which stay in a core's cache; 256 divides it


@dataclasses.dataclass(frozen=True)
class Gguf:
    """What one GGUF file holds: its fields, and its tensors under their own names, unread.

    `places` says of each tensor at what byte it begins and of what type it is, `spans` of each
    field from what byte to what byte it stands.
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
        """The bytes of a tensor as they are, a row for each of its rows."""
        from gguf import GGML_QUANT_SIZES

        (offset, kind), shape = self.places[name], self.tensors[name].shape
        block, taken = GGML_QUANT_SIZES[kind]
        width = shape[-1] // block * taken
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
            found = _header(path, file)
    except (ValueError, KeyError, struct.error) as error:
        raise ValueError(f"{path} is no whole GGUF file: {error}") from error
    if found.fields.get("split.count", 0) > 1:
        raise ValueError(f"{path} is one of {found.fields['split.count']} parts; merge them first")
    return found


def encoded_fields(path: pathlib.Path, prefix: str) -> dict[str, bytes]:
    """The fields whose names begin with `prefix`, as they stand in the file."""
    spans = {name: span for name, span in gguf(path).spans.items() if name.startswith(prefix)}
    cut = lambda begin, end: byte_ranges.part(path, begin, end - begin, np.dtype("u1")).tobytes()
    return {name: cut(*span) for name, span in spans.items()}


def _header(path: pathlib.Path, file: BinaryIO) -> Gguf:
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
    for name, (shape, number, offset) in infos.items():
        kind = GGMLQuantizationType(number)
        block, taken = GGML_QUANT_SIZES[kind]
        if not shape or shape[-1] % block:
            raise ValueError(f"{name} of shape {shape} is not in blocks of {block}")
        end = start + offset + math.prod(shape) // block * taken
        if end > size:
            raise ValueError(f"{name} ends at byte {end} of {size}")
        read = lambda _=None, where=(path, start + offset, shape, kind): _tensor(*where)
        tensors[name] = Lazy(shape, np.dtype("float32"), read)
        places[name] = start + offset, kind
    return Gguf(path, fields, tensors, places, spans)


def _unpack(file: BinaryIO, size: int, form: str) -> tuple:
    length = struct.calcsize("<" + form)
    if length > size - file.tell():
        raise ValueError(f"{size} bytes end in its header")
    return struct.unpack("<" + form, file.read(length))


def _string(file: BinaryIO, size: int) -> str:
    # Not by _unpack: a vocabulary has hundreds of thousands of these.
    length = int.from_bytes(file.read(8), "little")
    text = file.read(min(length, size))
    if len(text) != length:
        raise ValueError(f"{size} bytes end in its header")
    return text.decode("utf-8", "replace")


def _value(file: BinaryIO, size: int, kind: int) -> Any:
    if kind == _STRING:
        return _string(file, size)
    if kind != _ARRAY:
        return _unpack(file, size, _SCALARS[kind])[0]
    kind, count = _unpack(file, size, "IQ")
    if kind == _STRING:
        return [_string(file, size) for _ in range(count)]
    return list(_unpack(file, size, f"{count}{_SCALARS[kind]}"))


def _tensor(path: pathlib.Path, offset: int, shape: tuple[int, ...], kind: Any) -> np.ndarray:
    from gguf import GGML_QUANT_SIZES, dequantize

    block, taken = GGML_QUANT_SIZES[kind]
    out = np.empty(math.prod(shape), np.float32)
    for begin in range(0, out.size, _CHUNK):
        piece = out[begin : begin + _CHUNK]
        count = piece.size // block * taken
        data = byte_ranges.part(path, offset + begin // block * taken, count, np.dtype("u1"))
        try:
            piece[:] = dequantize(data, kind)
        except NotImplementedError as error:
            raise ValueError(f"{path} holds {kind.name} tensors, which cannot be read") from error
    return out.reshape(shape)
