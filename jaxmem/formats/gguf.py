"""GGUF: the fields and the tensors of a model's file or files; tensors are read when used.

Quantised types are decoded by the `gguf` package.
"""

import dataclasses
import math
import pathlib
import re
from typing import Any

import numpy as np

from ..core.lazy import Lazy
from ..io.aligned_memory import aligned
from . import byte_ranges, gguf_header
from .gguf_header import Header, TensorPlace

DECODED_NUMBERS = 1 << 18  # numbers decoded at once: they fit the cache of a core; 256 divides it


@dataclasses.dataclass(frozen=True)
class Gguf:
    """The fields of a GGUF file, and its tensors by llama.cpp's names, read when they are used.

    For a model in several files, `path` and `fields` are those of the first one. `places` says
    where the bytes of each tensor are, `spans` the first byte and the end of each field in `path`.
    """

    path: pathlib.Path
    fields: dict[str, Any]
    tensors: dict[str, Lazy]
    places: dict[str, TensorPlace] = dataclasses.field(default_factory=dict)
    spans: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)

    def kind(self, name: str) -> str:
        """The name of a tensor's type, such as Q4_K."""
        return self.places[name].kind.name

    def blocks(self, name: str) -> np.ndarray:
        """The undecoded bytes of a tensor: uint8 (rows, bytes of a row)."""
        place, width = self.places[name], self.row_bytes(name)
        count = math.prod(self.tensors[name].shape[:-1]) * width
        data = byte_ranges.part(place.path, place.offset, count, np.dtype("u1"))
        return data.reshape(-1, width)

    def row_bytes(self, name: str) -> int:
        """Bytes of a row of a tensor."""
        from gguf import GGML_QUANT_SIZES

        block, block_bytes = GGML_QUANT_SIZES[self.places[name].kind]
        return self.tensors[name].shape[-1] // block * block_bytes


def gguf(path: pathlib.Path) -> Gguf:
    """Opens a GGUF file and reads its header; for one part of several, all parts are opened.

    Raises:
        ValueError: The file is no whole GGUF file of version 2 or 3, or a part is missing.
        ImportError: The `gguf` package is missing.
    """
    header = _header(path)
    count = header.fields.get("split.count", 0)
    if type(count) is not int:
        raise ValueError(f"{path} has split.count = {count!r}, expected a number")
    if count <= 1:
        return _opened(path, header.fields, [header])
    paths = _parts(path, count)
    headers = [header if part == path else _header(part) for part in paths]
    for number, (part, header) in enumerate(zip(paths, headers)):
        place = header.fields.get("split.no"), header.fields.get("split.count")
        if place != (number, count):
            raise ValueError(
                f"{part} has split.no and split.count {place}, expected {number, count}"
            )
    file = _opened(paths[0], headers[0].fields, headers)
    total = file.fields.get("split.tensors.count", len(file.tensors))
    if total != len(file.tensors):
        raise ValueError(f"{paths[0]} names {total} tensors, its parts hold {len(file.tensors)}")
    return file


def encoded_fields(path: pathlib.Path, prefix: str) -> dict[str, bytes]:
    """The undecoded bytes of the fields whose names begin with `prefix`."""
    file = gguf(path)
    read = lambda begin, end: byte_ranges.part(file.path, begin, end - begin, np.dtype("u1"))
    names = (name for name in file.spans if name.startswith(prefix))
    return {name: read(*file.spans[name]).tobytes() for name in names}


def _header(path: pathlib.Path) -> Header:
    """The header of one file."""
    byte_ranges.check_regular(path)
    try:
        with path.open("rb") as file:
            return gguf_header.read(path, file)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as a GGUF file: {error}") from error


def _parts(path: pathlib.Path, count: int) -> list[pathlib.Path]:
    """The `count` files of a model, of which `path` is one, in their order."""
    match = re.fullmatch(r"(.*)-\d{5}-of-(\d{5})\.gguf", path.name)
    if not match or int(match[2]) != count:
        raise ValueError(
            f"{path} is one of {count} parts, but its name does not end in "
            f"-00001-of-{count:05}.gguf, so the other parts cannot be found; rename them so"
        )
    paths = [path.with_name(f"{match[1]}-{i:05}-of-{match[2]}.gguf") for i in range(1, count + 1)]
    missing = [part.name for part in paths if not part.exists()]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ValueError(
            f"{path} is one of {count} parts, and {', '.join(missing[:3])}{more} "
            f"{'are' if len(missing) > 1 else 'is'} missing beside it"
        )
    return paths


def _opened(path: pathlib.Path, fields: dict[str, Any], headers: list[Header]) -> Gguf:
    """The model whose parts have these headers; `path` and `fields` are those of the first."""
    tensors, places = {}, {}
    for header in headers:
        for name, place in header.places.items():
            if name in places:
                raise ValueError(f"{place.path} holds {name}, which is in {places[name].path} too")
            shape = header.shapes[name]
            read = lambda _=None, tensor=(place, shape, name): _tensor(*tensor)
            tensors[name] = Lazy(shape, np.dtype("float32"), read)
            places[name] = place
    return Gguf(path, fields, tensors, places, headers[0].spans)


def _tensor(place: TensorPlace, shape: tuple[int, ...], name: str) -> np.ndarray:
    """Decodes the tensor that lies at `place` to float32."""
    from gguf import GGML_QUANT_SIZES, dequantize

    kind = place.kind
    block, block_bytes = GGML_QUANT_SIZES[kind]
    out = aligned((math.prod(shape),), np.dtype("float32"))
    for begin in range(0, out.size, DECODED_NUMBERS):
        chunk = out[begin : begin + DECODED_NUMBERS]
        count = chunk.size // block * block_bytes
        offset = place.offset + begin // block * block_bytes
        data = byte_ranges.part(place.path, offset, count, np.dtype("u1"))
        try:
            chunk[:] = dequantize(data, kind)
        except NotImplementedError as error:
            raise ValueError(
                f"{place.path}: {name} is of type {kind.name}, which cannot be read"
            ) from error
    return out.reshape(shape)
