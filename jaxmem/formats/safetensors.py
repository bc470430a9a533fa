"""The tensors of safetensors files as {name: Lazy}, and the writer of such files.

Tensors are read with a seek and a read, not through a memory map: the pages of a mapped file stay
in the process until the system reclaims them, and the peak would be the size of the file.
"""

import json
import math
import pathlib
from collections.abc import Iterable
from typing import Any

import ml_dtypes
import numpy as np

from ..core.lazy import Lazy
from .byte_ranges import stored

_SAFETENSORS = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_LONGEST_HEADER = 100_000_000  # bytes; the limit of the format's reference reader

_NAMES = {
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int8": "I8",
}


def safetensors(path: pathlib.Path) -> dict[str, Lazy]:
    """The tensors of one safetensors file; only its header is read.

    Raises:
        ValueError: The file is not a whole safetensors file, or holds a type such as fp8.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _LONGEST_HEADER):
            raise ValueError(f"{path} is no whole safetensors file: {size} bytes end in its header")
        text = file.read(length)
    try:
        entries = json.loads(text)
        entries.pop("__metadata__", None)
        return {name: _safetensor(path, size, 8 + length, **e) for name, e in entries.items()}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is no whole safetensors file: {error}") from error


def _safetensor(path, size, start, *, dtype, shape, data_offsets) -> Lazy:
    """One tensor of a file of `size` bytes whose data begin at byte `start`.

    The keyword arguments are its entry in the header.
    """
    if dtype not in _SAFETENSORS:
        raise ValueError(f"a tensor of type {dtype}; expected one of {', '.join(_SAFETENSORS)}")
    begin, end = data_offsets
    shape, dtype = tuple(shape), _SAFETENSORS[dtype]
    if min(shape, default=0) < 0 or end - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{end - begin} bytes for a tensor of shape {shape} and type {dtype}")
    if begin < 0 or start + end > size:
        raise ValueError(f"a tensor ends at byte {start + end} of {size}")
    return stored(path, start + begin, shape, dtype)


def sharded(index: pathlib.Path) -> dict[str, Lazy]:
    """The tensors of the safetensors files that an index file beside them lists.

    Raises:
        ValueError: The index is malformed, or names a tensor its file does not hold.
        FileNotFoundError: A file it lists is missing.
    """
    try:
        file_names = dict(json.loads(index.read_text())["weight_map"])
        files = {name: index.parent / pathlib.Path(name).name for name in file_names.values()}
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{index} is no index of safetensors files: {error!r}") from error
    tensors = {name: safetensors(path) for name, path in files.items()}
    for name, file in file_names.items():
        if name not in tensors[file]:
            raise ValueError(f"{index} says {name} is in {file}, which does not hold it")
    return {name: tensors[file][name] for name, file in file_names.items()}


def write_safetensors(
    path: pathlib.Path, shapes: dict[str, tuple[tuple[int, ...], Any]], arrays: Iterable[np.ndarray]
) -> None:
    """Writes tensors of the given shapes and dtypes; `arrays` yields them in the same order."""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, (shape, dtype) in shapes.items():
        size = math.prod(shape) * np.dtype(dtype).itemsize
        offsets = [offset, offset + size]
        kind = _NAMES[np.dtype(dtype).name]
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": offsets}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for (shape, dtype), array in zip(shapes.values(), arrays, strict=True):
            data = np.ascontiguousarray(array, np.dtype(dtype)).reshape(shape)
            data.view(np.uint8).tofile(file)
