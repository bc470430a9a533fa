"""The variables of a CTranslate2 file (OpenNMT): a header for each, then its numbers.

    u32 version | text kind | u32 revision | u32 count
    count times: text name | u8 rank | u32 for each axis | u8 type | u32 bytes | the numbers
    u32 count | count times: text alias | text name

All is little-endian; a text is a u16 length, then so many bytes that end in a zero. Every length is
compared with the size of the file before anything is made of it.
"""

import dataclasses
import functools
import math
import os
import pathlib
import re
import struct
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from ..core.lazy import Lazy, combined
from .byte_ranges import check_regular, stored

_VERSIONS = (4, 5, 6)  # older ones have no types of their variables
_TYPES = ("float32", "int8", "int16", "int32", "float16", "bfloat16")  # by their number in a file
_DTYPES = {name: np.dtype(name) for name in _TYPES[:5]} | {"bfloat16": np.dtype(ml_dtypes.bfloat16)}
_VARIABLE_BYTES, _ALIAS_BYTES = 3 + 1 + 1 + 4, 3 + 3  # the least that one takes in the file
_MOST_AXES = 4
_MOST_NUMBERS = 1 << 59  # numpy refuses shapes of more bytes than 2^63, also with a side of 0


@dataclasses.dataclass(frozen=True)
class Ctranslate2:
    """What a file holds: the kind of model, its tensors, and single numbers as `options`.

    A tensor of int8 codes is there as the float32 tensor that it stands for. `aliases` has
    the names of equal tensors, which the file holds once, and under which of them.
    """

    path: pathlib.Path
    kind: str
    revision: int
    tensors: dict[str, Lazy]
    options: dict[str, Any]
    aliases: dict[str, str]


def is_ctranslate2(path: pathlib.Path) -> bool:
    """Whether a file begins as one of CTranslate2: a small version, and the name of a kind."""
    with path.open("rb") as file:
        start = file.read(64)
    version, length = struct.unpack_from("<IH", start.ljust(6, b"\0"))
    name = start[6 : 6 + length]
    return 1 < version < 256 and re.fullmatch(rb"[A-Z][A-Za-z0-9]+Spec\0", name) is not None


def ctranslate2(path: pathlib.Path) -> Ctranslate2:
    """Reads the headers of a file; the numbers of tensors are read when they are used.

    Raises:
        ValueError: the file is damaged or truncated, of a version or a type that is not read, or
            has codes that are not int8 with a scale for each row. The message names it.
    """
    check_regular(path)
    try:
        with path.open("rb") as file:
            return _read(path, file)
    except ValueError as error:
        raise ValueError(f"{path} is no whole CTranslate2 file: {error}") from error


def _read(path: pathlib.Path, file: BinaryIO) -> Ctranslate2:
    size = os.fstat(file.fileno()).st_size
    (version,) = _unpack(file, "I")
    if version not in _VERSIONS:
        raise ValueError(f"its version is {version}, expected one of {_VERSIONS}")
    kind = _text(file)
    revision, count = _unpack(file, "II")
    if count * _VARIABLE_BYTES > size:
        raise ValueError(f"{size} bytes hold no {count} variables")
    variables: dict[str, Lazy] = {}
    for _ in range(count):
        name, variable = _variable(path, file, size)
        if name in variables:
            raise ValueError(f"it has two variables {name!r}")
        variables[name] = variable
    (count,) = _unpack(file, "I")
    if count * _ALIAS_BYTES > size:
        raise ValueError(f"{size} bytes hold no {count} aliases")
    aliases = {}
    for _ in range(count):
        alias, name = _text(file), _text(file)
        if name not in variables or alias in variables or alias in aliases:
            raise ValueError(f"the alias {alias!r} is not one name of a variable, but of {name!r}")
        aliases[alias] = name
    if file.tell() != size:
        raise ValueError(f"its last {size - file.tell()} bytes belong to no variable")
    options = {name: x.load().item() for name, x in variables.items() if not x.shape}
    tensors = _dense(path, variables)
    tensors |= {alias: tensors[name] for alias, name in aliases.items() if name in tensors}
    return Ctranslate2(path, kind, revision, tensors, options, aliases)


def _variable(path: pathlib.Path, file: BinaryIO, size: int) -> tuple[str, Lazy]:
    """The name and the array of the next variable of a file of `size` bytes."""
    name = _text(file)
    (rank,) = _unpack(file, "B")
    if rank > _MOST_AXES:
        raise ValueError(f"{name} has {rank} axes, expected at most {_MOST_AXES}")
    shape = _unpack(file, f"{rank}I")
    type_number, nbytes = _unpack(file, "BI")
    if type_number >= len(_TYPES):
        raise ValueError(f"{name} is of type {type_number}, expected one below {len(_TYPES)}")
    if math.prod(max(side, 1) for side in shape) > _MOST_NUMBERS:
        raise ValueError(f"{name} has shape {shape}, more numbers than a file holds")
    dtype = _DTYPES[_TYPES[type_number]]
    if math.prod(shape) * dtype.itemsize != nbytes:
        raise ValueError(f"{name} of shape {shape} and {dtype} has {nbytes} bytes")
    offset = file.tell()
    if offset + nbytes > size:
        raise ValueError(f"{name} ends at byte {offset + nbytes} of {size}")
    if shape:
        file.seek(offset + nbytes)
        return name, stored(path, offset, shape, dtype)
    number = np.frombuffer(file.read(nbytes), dtype).reshape(())
    return name, Lazy((), dtype, lambda _: number)


def _dense(path: pathlib.Path, variables: dict[str, Lazy]) -> dict[str, Lazy]:
    """The tensors, with codes divided by their scales: there is one for each row.

    A row is what lies along axis 1: the inputs of a linear map, the channels of a convolution.
    """
    tensors = {name: x for name, x in variables.items() if x.shape}
    is_scale = lambda name: name.endswith("_scale") and name.removesuffix("_scale") in tensors
    out = {}
    for name, tensor in tensors.items():
        scale = variables.get(f"{name}_scale")
        if is_scale(name):
            continue
        if scale is None:
            out[name] = tensor
            continue
        if tensor.dtype != np.int8 or scale.shape != (*tensor.shape[:1], *tensor.shape[2:]):
            raise ValueError(
                f"{name} holds {tensor.dtype} of shape {tensor.shape} with scales of shape "
                f"{scale.shape}, expected int8 with one for each row"
            )
        decoded = combined(functools.partial(_divided, f"{path}: {name}"), tensor, scale)
        out[name] = dataclasses.replace(decoded, dtype=np.dtype(np.float32))
    return out


def _divided(name: str, codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """The numbers that codes (f32) stand for; `name` is for an error."""
    if not np.all((scales > 0) & (scales < np.inf)):
        raise ValueError(f"{name} has scales that are not positive and finite")
    return codes / np.expand_dims(scales, 1)


def _unpack(file: BinaryIO, form: str) -> tuple:
    """The next numbers of a file; `form` is a format string of `struct`."""
    length = struct.calcsize("<" + form)
    data = file.read(length)
    if len(data) != length:
        raise ValueError("it ends inside a header")
    return struct.unpack("<" + form, data)


def _text(file: BinaryIO) -> str:
    """The next text of a file, without the zero at its end."""
    (length,) = _unpack(file, "H")
    data = file.read(length)
    if len(data) != length:
        raise ValueError("it ends inside a name")
    if not data.endswith(b"\0") or b"\0" in data[:-1] or not data[:-1].isascii():
        raise ValueError(f"a name is {data[:40]!r}, expected ASCII and a zero at its end")
    return data[:-1].decode("ascii")
