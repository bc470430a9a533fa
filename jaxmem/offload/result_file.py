"""pack, unpack: a result as bytes that hold its key and structure, all under one SHA-256."""

import hashlib
import io
import json
import math
import struct
from typing import Any

import numpy as np

from ..io import packed_bytes
from ..io.manifest import describe, known_classes, named_dtype, rebuild

_MAGIC = b"\x89jmres1\n"
_HEAD = struct.Struct("<8s32sQ")  # magic, SHA-256 of all that follows it, bytes of the JSON


def pack(key: str, tree: Any) -> bytes:
    """The file of a result: a manifest in JSON, then the bytes of the arrays.

    Raises:
        TypeError: the tree holds what is neither an array nor a plain value.
        ValueError: the tree holds a class that `unpack` would not know.
    """
    arrays: list = []
    node = describe(tree, arrays)
    entries = [
        {"dtype": x.dtype.name, "shape": x.shape, "numpy": isinstance(x, np.ndarray)}
        for x in arrays
    ]
    text = json.dumps({"key": key, "tree": node, "arrays": entries}).encode()
    rebuild(node, arrays, _classes(text))  # refuses a class that is not known
    parts = [raw.tobytes() for x in arrays for raw in packed_bytes.raw_parts(x)]
    body = b"".join([struct.pack("<Q", len(text)), text, *parts])
    return _MAGIC + hashlib.sha256(body).digest() + body


def unpack(key: str, data: bytes) -> Any:
    """The tree that `pack` was given; its arrays are NumPy's.

    Raises:
        ValueError: the bytes are damaged, or are the result of another key.

    Example:
        >>> unpack("k", pack("k", {"mean": np.float32(2), "x": np.ones(2)}))
        {'mean': np.float32(2.0), 'x': array([1., 1.])}
        >>> unpack("other", pack("k", 3))
        Traceback (most recent call last):
        ValueError: it is the result of 'k', not of 'other'
    """
    if len(data) < _HEAD.size or not data.startswith(_MAGIC):
        raise ValueError("it is no file of a result")
    _, digest, size = _HEAD.unpack_from(data)
    if hashlib.sha256(memoryview(data)[40:]).digest() != digest:
        raise ValueError("it is damaged: it does not match its SHA-256")
    text = data[_HEAD.size : _HEAD.size + size]
    manifest = json.loads(text)
    if manifest["key"] != key:
        raise ValueError(f"it is the result of {manifest['key']!r}, not of {key!r}")
    file = io.BytesIO(data)
    file.seek(_HEAD.size + size)
    arrays = []
    for entry in manifest["arrays"]:
        shape, dtype = tuple(entry["shape"]), named_dtype(entry["dtype"])
        nbytes = packed_bytes.stored_bytes(math.prod(shape), dtype)
        if nbytes > len(data) - file.tell():
            raise ValueError(f"it is damaged: it ends within an array {shape}")
        array = np.empty(shape, dtype)
        packed_bytes.read_into(file, array, nbytes)
        arrays.append(array)
    return rebuild(manifest["tree"], arrays, _classes(text))


def _classes(text: bytes) -> dict[str, type]:
    """The classes that a manifest may name; none are looked for where it names none."""
    return known_classes() if b'"class"' in text else {}
