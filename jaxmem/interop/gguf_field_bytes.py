"""The fields of a GGUF file's header as bytes: a name, the type of the value, the value."""

import struct
from typing import Any

_U32, _I32, _F32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9  # types of a field


def field(name: str, value: Any) -> bytes:
    """A field encoded for the header: its name, type and value."""
    return text(name) + _value(value)


def text(string: str) -> bytes:
    """A string encoded for the header: its length in bytes as u64, then UTF-8."""
    data = string.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: Any) -> bytes:
    """A value encoded for the header: the number of its type, then its bytes."""
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + text(value)
    if isinstance(value, bool):
        return struct.pack("<I?", _BOOL, value)
    if isinstance(value, list):
        return struct.pack("<I", _ARRAY) + _array(value)
    kind, form = (_F32, "f") if isinstance(value, float) else (_U32, "I")
    return struct.pack(f"<I{form}", kind, value)


def _array(values: list) -> bytes:
    """An array of strings, bools, floats or integers: the type of an entry, the count, the data."""
    first = values[0] if values else ""
    if isinstance(first, str):
        return struct.pack("<IQ", _STRING, len(values)) + b"".join(map(text, values))
    if isinstance(first, bool):
        return struct.pack(f"<IQ{len(values)}?", _BOOL, len(values), *values)
    kind, form = (_F32, "f") if isinstance(first, float) else (_I32, "i")
    return struct.pack(f"<IQ{len(values)}{form}", kind, len(values), *values)
