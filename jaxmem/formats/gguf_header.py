"""The header of a GGUF file: its fields, then the name, shape, type and place of each tensor.

A count or a length in the header is compared with the size of the file before anything is made of
it, so that a damaged file costs no more time and memory than one of its size.
"""

import dataclasses
import math
import os
import pathlib
import struct
from typing import Any, BinaryIO

from ..core.warning import warn

_SCALARS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_RANKS = range(1, 5)  # ggml's tensors have up to four axes
_MOST_NUMBERS = 1 << 59  # numpy refuses shapes of more bytes than 2^63, also with a side of 0
_FIELD_BYTES, _TENSOR_BYTES = 8 + 4 + 1, 8 + 4 + 8 + 4 + 8  # the least that one takes in the header


@dataclasses.dataclass(frozen=True)
class TensorPlace:
    """Where a tensor lies: the file, its first byte there, and its type."""

    path: pathlib.Path
    offset: int
    kind: Any  # gguf.GGMLQuantizationType


@dataclasses.dataclass(frozen=True)
class Header:
    """The fields of one file, the bytes that each takes, and the shapes and places of tensors."""

    fields: dict[str, Any]
    spans: dict[str, tuple[int, int]]  # the first byte of a field, and its end
    shapes: dict[str, tuple[int, ...]]
    places: dict[str, TensorPlace]


def read(path: pathlib.Path, file: BinaryIO) -> Header:
    """Reads the header of an open file; `path` is the file's.

    Raises:
        ValueError: The header is damaged, or describes tensors that the file does not hold.
    """
    size = os.fstat(file.fileno()).st_size
    magic, version = _unpack(file, size, "4sI")
    if magic == b"GGUF" and version and version & 0xFFFF == 0:
        raise ValueError("it is big-endian; convert it with gguf-convert-endian")
    if magic != b"GGUF" or version not in (2, 3):
        raise ValueError(f"it begins with {magic!r} and version {version}, expected GGUF 2 or 3")
    tensor_count, field_count = _unpack(file, size, "QQ")
    if tensor_count * _TENSOR_BYTES + field_count * _FIELD_BYTES > size:
        raise ValueError(f"{size} bytes hold no {tensor_count} tensors and {field_count} fields")
    fields, spans = _fields(file, size, field_count)
    infos = _infos(file, size, tensor_count)
    alignment = fields.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise ValueError(f"general.alignment is {alignment!r}, expected a power of two")
    data = -(-file.tell() // alignment) * alignment
    places, offset = {}, 0
    for name, (shape, type_number, stored_offset) in infos.items():
        kind, count = _type(name, shape, type_number)
        if stored_offset != offset:
            raise ValueError(
                f"{name} begins at byte {stored_offset} of the tensors, expected {offset}: "
                "tensors overlap, or bytes are missing between them"
            )
        if data + offset + count > size:
            raise ValueError(f"{name} ends at byte {data + offset + count} of {size}")
        places[name] = TensorPlace(path, data + offset, kind)
        offset += -(-count // alignment) * alignment
    if data + offset < size:
        warn(f"{path}: the last {size - data - offset} bytes belong to no tensor, and are not read")
    return Header(fields, spans, {name: info[0] for name, info in infos.items()}, places)


def _fields(file: BinaryIO, size: int, count: int) -> tuple[dict, dict]:
    """The next `count` fields of a file of `size` bytes, and the bytes that each takes."""
    fields, spans = {}, {}
    for _ in range(count):
        begin, name = file.tell(), _string(file, size)
        if name in fields:
            raise ValueError(f"it has two fields {name!r}")
        try:
            fields[name] = _value(file, size, *_unpack(file, size, "I"))
        except ValueError as error:
            raise ValueError(f"field {name!r}: {error}") from error
        spans[name] = begin, file.tell()
    return fields, spans


def _infos(file: BinaryIO, size: int, count: int) -> dict[str, tuple]:
    """The shape, number of the type and offset of the next `count` tensors, by name."""
    infos = {}
    for _ in range(count):
        name = _string(file, size)
        (rank,) = _unpack(file, size, "I")
        if name in infos or rank not in _RANKS:
            problem = f"{rank} axes, expected 1 to 4" if rank not in _RANKS else "two entries"
            raise ValueError(f"tensor {name!r} has {problem}")
        shape = _unpack(file, size, f"{rank}Q")[::-1]
        infos[name] = (shape, *_unpack(file, size, "IQ"))
    return infos


def _type(name: str, shape: tuple[int, ...], type_number: int) -> tuple[Any, int]:
    """The type of a tensor, and the bytes that a tensor of this shape takes."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        kind = GGMLQuantizationType(type_number)
    except ValueError as error:
        raise ValueError(f"{name} is of type {type_number}, which is no type of ggml") from error
    block, block_bytes = GGML_QUANT_SIZES[kind]
    if math.prod(max(side, 1) for side in shape) > _MOST_NUMBERS:
        raise ValueError(f"{name} has shape {shape}, more numbers than a file holds")
    if shape[-1] % block:
        raise ValueError(f"{name} of shape {shape} is not in blocks of {block}")
    return kind, math.prod(shape) // block * block_bytes


def _unpack(file: BinaryIO, size: int, form: str) -> tuple:
    """The next numbers of a file of `size` bytes; `form` is a format string of `struct`."""
    length = struct.calcsize("<" + form)
    data = file.read(length) if length <= size else b""
    if len(data) != length:
        raise ValueError(f"{size} bytes end in its header")
    return struct.unpack("<" + form, data)


def _string(file: BinaryIO, size: int) -> str:
    """The next string of a file of `size` bytes: its length as u64, then UTF-8."""
    # A vocabulary has hundreds of thousands of strings, and `_unpack` is slower than this.
    count = file.read(8)
    length = int.from_bytes(count, "little")
    data = file.read(min(length, size))  # a read reserves all the bytes that it is asked for
    if len(count) != 8 or len(data) != length:
        raise ValueError(f"{size} bytes end in its header")
    return data.decode("utf-8", "replace")


def _value(file: BinaryIO, size: int, kind: int) -> Any:
    """The next value of a file of `size` bytes; `kind` is the number of its GGUF type."""
    if kind == _STRING:
        return _string(file, size)
    if kind in _SCALARS:
        return _unpack(file, size, _SCALARS[kind])[0]
    if kind != _ARRAY:
        raise ValueError(f"type {kind} is no type of GGUF")
    kind, count = _unpack(file, size, "IQ")
    if kind == _STRING and count * 8 <= size:
        return [_string(file, size) for _ in range(count)]
    if kind in _SCALARS and count <= size:
        return list(_unpack(file, size, f"{count}{_SCALARS[kind]}"))
    problem = f"{size} bytes hold no {count} entries"
    if kind not in _SCALARS and kind != _STRING:
        problem = "it is an array of arrays" if kind == _ARRAY else f"type {kind} is none of GGUF"
    raise ValueError(problem)
