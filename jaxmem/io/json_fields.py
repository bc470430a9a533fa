"""JSON objects whose fields have types and ranges; an error names file and field."""

import json
import math
import pathlib
import re
from collections.abc import Iterable
from typing import Any

LARGEST = 2**31 - 1  # sizes and ids are int32 in the arrays that they describe
_REQUIRED = object()
_LONGEST_VALUE = 80  # characters of a value in a message


def read_object(path: pathlib.Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ValueError: the file is missing, is no regular file (a pipe would never end), or holds no
            JSON object; the message names it.
    """
    if not path.is_file():
        raise ValueError(f"{path} is {'no regular file' if path.exists() else 'missing'}")
    return parse_object(path.read_bytes(), path)


def parse_object(text: str | bytes, source: Any) -> dict[str, Any]:
    """The JSON object that is written in `text`.

    Raises:
        ValueError: the text is no JSON object; the message begins with `source`.

    Example:
        >>> parse_object("[1]", "config.json")
        Traceback (most recent call last):
        ValueError: config.json holds a list, expected a JSON object
    """
    try:
        data = json.loads(text)
    except RecursionError as error:
        raise ValueError(f"{source} is no JSON: it is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"{source} is no JSON: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{source} holds a {type(data).__name__}, expected a JSON object")
    return data


class JsonFields:
    """The fields of a JSON object, read one by one with a type and a range.

    A field that is null reads as a missing one. Every method raises a ValueError that names the
    field and its value; `prefix` comes before the field's name. The fields that were read are
    remembered, so that `refuse_unread` can name those that nothing has read.

    Example:
        >>> fields = JsonFields({"layers": "2", "eps": 1e-5, "twist": 3})
        >>> fields.number("eps", above=0)
        1e-05
        >>> fields.integer("layers")
        Traceback (most recent call last):
        ValueError: layers is '2', expected an integer of at least 1
        >>> fields.refuse_unread()
        Traceback (most recent call last):
        ValueError: twist is 3, a field that is not known here...
    """

    def __init__(self, data: Any, prefix: str = ""):
        if not isinstance(data, dict):
            name = prefix.removesuffix(".") or "the value"
            raise ValueError(f"{name} is {_shown(data)}, expected a JSON object")
        self.data, self.prefix = data, prefix
        self._read: set[str] = set()
        self._objects: list[JsonFields] = []

    def __contains__(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return self.data.get(name) is not None

    def integer(
        self, name: str, default: Any = _REQUIRED, *, least: int = 1, most: int = LARGEST
    ) -> Any:
        """An integer from `least` to `most`, or the default."""
        value = self._get(name, default)
        if name in self and not _is_integer(value, least, most):
            limit = f" and at most {most}" if _is_integer(value, least, value) else ""
            self.refuse(name, f"an integer of at least {least}", limit)
        return value

    def number(
        self,
        name: str,
        default: Any = _REQUIRED,
        *,
        above: float = -math.inf,
        below: float = math.inf,
    ) -> float | None:
        """A finite number between `above` and `below`, as a float, or the default."""
        value = self._get(name, default)
        if name not in self:
            return value
        if not _is_number(value, above) or value >= below:
            bounds = [f"above {above:g}"] if above > -math.inf else []
            bounds += [f"below {below:g}"] if below < math.inf else []
            self.refuse(name, " ".join(("a finite number", " and ".join(bounds))).rstrip())
        return float(value)

    def boolean(self, name: str, default: bool) -> bool:
        """A bool, or the default."""
        value = self._get(name, default)
        if not isinstance(value, bool):
            self.refuse(name, "true or false")
        return value

    def text(self, name: str, default: Any = _REQUIRED, among: Iterable[str] = ()) -> Any:
        """A string, one of `among` unless that is empty, or the default."""
        value, among = self._get(name, default), tuple(among)
        if name in self and (not isinstance(value, str) or (among and value not in among)):
            self.refuse(name, f"one of {', '.join(among)}" if among else "a string")
        return value

    def texts(self, name: str) -> list[str]:
        """A list of strings; an empty one if the field is missing."""
        value = self._get(name, [])
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            self.refuse(name, "a list of strings")
        return value

    def integers(self, name: str) -> tuple[int, ...]:
        """The integers of a list, or one integer; none if the field is missing."""
        value = self._get(name, [])
        values = value if isinstance(value, list) else [value]
        if not all(_is_integer(x, -LARGEST - 1, LARGEST) for x in values):
            self.refuse(name, "an integer or a list of integers")
        return tuple(values)

    def numbers(self, name: str, *, above: float = -math.inf) -> tuple[float, ...]:
        """The finite numbers of a list, each larger than `above`; none if the field is missing."""
        value = self._get(name, [])
        if not isinstance(value, list) or not all(_is_number(x, above) for x in value):
            self.refuse(name, "a list of numbers", f" above {above:g}" if above > -math.inf else "")
        return tuple(map(float, value))

    def object(self, name: str) -> "JsonFields":
        """The fields of an object; no fields if it is missing."""
        fields = JsonFields(self._get(name, {}), f"{self.prefix}{name}.")
        self._objects.append(fields)
        return fields

    def objects(self, name: str) -> dict[str, "JsonFields"]:
        """The fields of each object in an object of objects."""
        outer = self.object(name)
        return {key: outer.object(key) for key in outer.data}

    def expect(self, name: str, *values: Any) -> None:
        """Refuses a field that is there and is none of `values`, with which alone it is computed.

        The first value is what a missing field means.
        """
        value = self._get(name, values[0])
        if not any(value == x and isinstance(value, bool) == isinstance(x, bool) for x in values):
            self.refuse(name, " or ".join(map(repr, values)), ", which is what is computed here")

    def ignore(self, *names: str) -> None:
        """Marks fields as known, and without influence on what is computed."""
        self._read.update(names)

    def refuse(self, name: str, expected: str, detail: str = "") -> None:
        """Raises the ValueError of a field's value."""
        value = self.data.get(name)
        raise ValueError(f"{self.prefix}{name} is {_shown(value)}, expected {expected}{detail}")

    def refuse_unread(self, harmless: str = "") -> None:
        """Refuses the fields that nothing has read, in this object and in those read from it.

        A field that is null, false, zero or empty switches nothing on and passes. So does one whose
        name the pattern `harmless` matches whole.

        Raises:
            ValueError: such a field is left.
        """
        for name, value in self.data.items():
            off = value is None or value in (False, 0, "", [], {})
            if name not in self._read and not off and not re.fullmatch(harmless, name):
                raise ValueError(
                    f"{self.prefix}{name} is {_shown(value)}, a field that is not known here; "
                    "delete it if it does not change what the model computes"
                )
        for fields in self._objects:
            fields.refuse_unread()

    def _get(self, name: str, default: Any) -> Any:
        self._read.add(name)
        if name in self:
            return self.data[name]
        if default is _REQUIRED:
            raise ValueError(f"{self.prefix}{name} is missing")
        return default


def _is_integer(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_number(value: Any, above: float) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and above < value < math.inf


def _shown(value: Any) -> str:
    """The value in a message, cut to a line."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deeply; an integer of thousands of digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}…"
