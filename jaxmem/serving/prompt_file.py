"""Requests read from JSON lines; a bad line is a refusal with a name, and spoils no other line."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from ..core.arguments import PATH, Kind, takes
from ..io.json_fields import parse_object
from .generation_request import GenerationRequest

_PROMPTS = ("prompt", "messages", "ids")
_FIELDS = {field.name for field in dataclasses.fields(GenerationRequest)}
_PATH = Kind(PATH.expected, lambda x: isinstance(x, str | os.PathLike))


@dataclasses.dataclass(frozen=True)
class Refusal:
    """A request that is not answered, and why."""

    id: str
    error: str


@takes(path=_PATH)
def read_requests(
    path: str | os.PathLike, *, defaults: Mapping[str, Any] | None = None
) -> list[GenerationRequest | Refusal]:
    """The requests of a file of JSON lines, in order, with a `Refusal` in place of each bad one.

    A line is an object with the fields of `GenerationRequest`, such as {"prompt": "Hello"} or
    {"id": "b", "messages": [{"role": "user", "content": "Hello"}], "temperature": 0.7}. A line
    without an id is named "line 3" after its number. Empty lines are passed over.

    Args:
        path: the file, UTF-8.
        defaults: fields of lines that do not have them.

    Raises:
        ValueError: the file has no request, or is not UTF-8; `defaults` has an unknown field, or
            one that is out of range.
        TypeError: a field of `defaults` is of another type.
        OSError: the file cannot be read.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp(), "prompts.jsonl")
        >>> _ = path.write_text('{"prompt": "Hello"}\\n{"prompt": "Hi", "heat": 1}\\n')
        >>> good, bad = read_requests(path)
        >>> good.id, bad.id, bad.error
        ('line 1', 'line 2', 'heat is no field of a request')
    """
    defaults = dict(defaults or {})
    if unknown := sorted(set(defaults) - _FIELDS):
        raise ValueError(f"defaults have {unknown[0]!r}, which is no field of a request")
    options = {name: value for name, value in defaults.items() if name not in _PROMPTS}
    GenerationRequest(**{"id": "defaults", "prompt": "-", **options})  # checks them
    found: list[GenerationRequest | Refusal] = []
    names: set[str] = set()
    try:
        with pathlib.Path(path).open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    found.append(_request(line, f"line {number}", defaults, names))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error
    if not found:
        raise ValueError(f"{path} has no request, expected a JSON object in each line")
    return found


def _request(
    line: str, place: str, defaults: Mapping[str, Any], names: set[str]
) -> GenerationRequest | Refusal:
    """The request of a line, or why it is none; its id joins `names`."""
    id = place
    try:
        fields = parse_object(line, place)
        given = fields.get("id")
        id = place if given is None else given if isinstance(given, str) else json.dumps(given)
        if id in names:
            raise ValueError(f"{place} has the id {id!r} of a line before it")
        names.add(id)
        if unknown := sorted(set(fields) - _FIELDS):
            raise ValueError(f"{unknown[0]} is no field of a request")
        present = {name: value for name, value in fields.items() if value is not None}
        return GenerationRequest(**{**defaults, **present, "id": id})
    except (ValueError, TypeError) as error:
        names.add(id)
        return Refusal(id, str(error))
