"""The tensors of safetensors files as {name: Lazy}, and the writer of such files.

Tensors are read with a seek and a read, not through a memory map: the pages of a mapped file stay
in the process until the system reclaims them, and the peak would be the size of the file.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Iterable
from typing import Any

import ml_dtypes
import numpy as np

from ..core.lazy import Lazy
from ..core.warning import warn
from ..io.json_fields import JsonFields, parse_object, read_object
from .byte_ranges import check_regular, stored

_SAFETENSORS = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "C64": np.dtype("<c8"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_NAMED = 4  # tensors in a warning
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

    A tensor of a type that is not known raises when it is read, so that others can be used.

    Raises:
        ValueError: The file is not a whole safetensors file. As in the format's reference reader,
            the tensors fill the file: none overlap, and no byte is left between or after them.
    """
    check_regular(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _LONGEST_HEADER):
            raise ValueError(f"{path} is no whole safetensors file: {size} bytes end in its header")
        text = file.read(length)
    entries = parse_object(text, path)
    entries.pop("__metadata__", None)
    try:
        spans = {name: _Span.of(JsonFields(entries[name], f"{name}.")) for name in entries}
        _check_filled(spans, size - 8 - length)
    except ValueError as error:
        raise ValueError(f"{path} is no whole safetensors file: {error}") from error
    return {name: span.tensor(path, name, 8 + length) for name, span in spans.items()}


@dataclasses.dataclass(frozen=True)
class _Span:
    """The entry of one tensor in a header: its type, shape, and bytes after the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @staticmethod
    def of(fields: JsonFields) -> "_Span":
        """The span of an entry, whose length is the one of its shape and type."""
        dtype, shape = fields.text("dtype"), _sizes(fields, "shape")
        offsets = _sizes(fields, "data_offsets")
        fields.refuse_unread()
        if len(offsets) != 2 or offsets[0] > offsets[1]:
            fields.refuse("data_offsets", "where its bytes begin and end")
        if dtype in _SAFETENSORS:
            expected = math.prod(shape) * _SAFETENSORS[dtype].itemsize
            if offsets[1] - offsets[0] != expected:
                fields.refuse("data_offsets", f"{expected} bytes for shape {shape} of {dtype}")
        return _Span(dtype, shape, *offsets)

    def tensor(self, path: pathlib.Path, name: str, start: int) -> Lazy:
        """The tensor, whose bytes begin after byte `start` of the file."""
        if self.dtype in _SAFETENSORS:
            return stored(path, start + self.begin, self.shape, _SAFETENSORS[self.dtype])

        def refuse(_: int | None = None) -> np.ndarray:
            known = ", ".join(_SAFETENSORS)
            raise ValueError(f"{path}: {name} is of type {self.dtype}, expected one of {known}")

        return Lazy(self.shape, np.dtype(np.float32), refuse)


def _sizes(fields: JsonFields, name: str) -> tuple[int, ...]:
    """A list of integers that are not negative."""
    values = fields.data.get(name)
    fields.ignore(name)
    is_size = lambda x: isinstance(x, int) and not isinstance(x, bool) and x >= 0
    if not isinstance(values, list) or not all(map(is_size, values)):
        fields.refuse(name, "a list of sizes")
    return tuple(values)


def _check_filled(spans: dict[str, _Span], size: int) -> None:
    """Refuses tensors that overlap, and bytes that belong to none; `size` bytes are there."""
    at = 0
    for name, span in sorted(spans.items(), key=lambda item: (item[1].begin, item[1].end)):
        if span.begin != at:
            raise ValueError(f"{name} begins at byte {span.begin} of the data, expected {at}")
        at = span.end
    if at != size:
        raise ValueError(f"its tensors take {at} bytes, and {size} are there")


def sharded(index: pathlib.Path) -> dict[str, Lazy]:
    """The tensors of the safetensors files that an index file beside them lists.

    A warning names tensors that the files hold and the index does not list.

    Raises:
        ValueError: The index is malformed, names a file that is missing, or a tensor that its file
            does not hold.
    """
    fields = JsonFields(read_object(index), f"{index}: ")
    weight_map = fields.object("weight_map")
    names = {name: pathlib.PurePath(weight_map.text(name)).name for name in weight_map.data}
    paths = {name: index.parent / file_name for name, file_name in names.items()}
    if not paths:
        fields.refuse("weight_map", "the file of each tensor")
    for path in dict.fromkeys(paths.values()):
        if not path.is_file():
            raise ValueError(f"{index} lists {path.name}, which is missing; is the download whole?")
    files = {path: safetensors(path) for path in dict.fromkeys(paths.values())}
    for name, path in paths.items():
        if name not in files[path]:
            raise ValueError(f"{index} says {name} is in {path.name}, which does not hold it")
    unlisted = sorted({name for tensors in files.values() for name in tensors} - paths.keys())
    if unlisted:
        more = f" and {len(unlisted) - _NAMED} more" if len(unlisted) > _NAMED else ""
        warn(
            f"{index} does not list {', '.join(unlisted[:_NAMED])}{more}, which its files hold: "
            "these tensors are not read"
        )
    return {name: files[path][name] for name, path in paths.items()}


def write_safetensors(
    path: pathlib.Path, shapes: dict[str, tuple[tuple[int, ...], Any]], arrays: Iterable[np.ndarray]
) -> None:
    """Writes tensors of the given shapes and dtypes; `arrays` yields them in the same order."""
    with path.open("wb") as file:
        file.write(written_header(shapes))
        for (shape, dtype), array in zip(shapes.values(), arrays, strict=True):
            data = np.ascontiguousarray(array, np.dtype(dtype)).reshape(shape)
            data.reshape(-1).view(np.uint8).tofile(file)


def written_header(shapes: dict[str, tuple[tuple[int, ...], Any]]) -> bytes:
    """The bytes before the tensors in a file of tensors of the given shapes and dtypes."""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, (shape, dtype) in shapes.items():
        size = math.prod(shape) * np.dtype(dtype).itemsize
        offsets = [offset, offset + size]
        kind = _NAMES[np.dtype(dtype).name]
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": offsets}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
