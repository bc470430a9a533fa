"""Scores of items on disk as JSON lines, so that a suite goes on where it was stopped.

The first line is `{"key": ..., ...}`: what the scores are of. A file with another key is not read.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from ..io.atomic import replacing


def write_items(
    path: pathlib.Path, header: Mapping[str, Any], items: Sequence[Mapping[str, Any]]
) -> None:
    """Writes the file, which appears whole or not at all.

    Example:
        >>> import tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp(), "dense", "sst2.jsonl")
        >>> write_items(path, {"key": "a"}, [{"item": 0, "score": 1.0}])
        >>> read_items(path, "a"), read_items(path, "b")
        (({'key': 'a'}, [{'item': 0, 'score': 1.0}]), None)
    """
    with replacing(path) as new:
        lines = (json.dumps(line, ensure_ascii=False) + "\n" for line in (header, *items))
        new.write_text("".join(lines), encoding="utf-8")


def read_items(
    path: pathlib.Path, key: str | None = None
) -> tuple[dict[str, Any], list[dict[str, Any]]] | None:
    """(header, items); None if there is no file, or if it is of another key than `key`.

    Raises:
        ValueError: the file is not one that `write_items` wrote.
    """
    if not path.is_file():
        return None
    try:
        header, *items = map(json.loads, path.read_text(encoding="utf-8").strip().split("\n"))
        found = header["key"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no scores of items: {error}") from error
    return (header, items) if key in (None, found) else None
