"""read_task, write_task: a task as one file of JSON lines.

The first line is `{"task": {"name": ..., "kind": ..., "prompt": ...}}`, the fields of `Task`. Each
other line is an item, `{"document": id, "text": ...}`, or `{"train": item}`. Beside "task" the
first line may have a "dataset", `{"path": "owner/name", "split": "test"}`, whose rows are items.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from ..core.arguments import takes
from ..io.atomic import replacing
from .hub_items import hub_items
from .task import Task


@takes()
def read_task(path: str | os.PathLike) -> Task:
    """The task of a file.

    A data set that the file names is read by `datasets`, from the hub or a folder; a relative path
    is looked for beside the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is no JSON object, or the first says nothing of the task; what `Task`
            refuses; a data set is not read. The message names the file and the line.
        ImportError: the file names a data set, and datasets is missing.

    Example:
        >>> import pathlib, tempfile
        >>> item = {"text": "dull", "answer": 0}
        >>> path = pathlib.Path(tempfile.mkdtemp(), "mood.jsonl")
        >>> write_task(path, Task("mood", "choice", (item,), "{text}", ("bad", "good")))
        >>> read_task(path).choices
        ('bad', 'good')
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file of a task: {path}")
    lines = _objects(path)
    number, first = next(lines, (1, {}))
    header = first.get("task")
    if not isinstance(header, dict):
        raise ValueError(
            f'{path}, line {number}: expected {{"task": {{"name": ..., "kind": ...}}}}'
        )
    known = {field.name for field in dataclasses.fields(Task)} - {"items", "documents", "train"}
    for name in header:
        if name not in known:
            raise ValueError(f"{path}: the task has no field {name!r}, expected {sorted(known)}")
    items, train, documents = [], [], {}
    for number, line in lines:
        if "document" in line:
            if not isinstance(line.get("text"), str):
                raise ValueError(f"{path}, line {number}: a document has no text")
            documents[str(line["document"])] = line["text"]
        elif "train" in line:
            train.append(line["train"])
        else:
            items.append(line)
    try:
        if "dataset" in first:
            found = _of_dataset(first["dataset"], header, path.parent)
            items, train = [*found["items"], *items], [*found.get("train", ()), *train]
        return Task(**header, items=tuple(items), train=tuple(train), documents=documents)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


@takes()
def write_task(path: str | os.PathLike, task: Task) -> None:
    """Writes a file that `read_task` reads; it appears whole or not at all."""
    lines = [{"task": task.header()}]
    lines += [{"document": name, "text": text} for name, text in task.documents.items()]
    lines += [{"train": item} for item in task.train] + list(task.items)
    with replacing(pathlib.Path(path)) as new:
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        new.write_text(text, encoding="utf-8")


def _of_dataset(source: Any, header: dict[str, Any], folder: pathlib.Path) -> dict[str, tuple]:
    """The items of the data set that a file names."""
    if not isinstance(source, dict):
        raise ValueError(f'dataset is {source!r}, expected {{"path": ...}}')
    return hub_items(source, str(header.get("answer", "answer")), folder)


def _objects(path: pathlib.Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, object) of each line that is not empty."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number} is no JSON: {error}") from error
        if not isinstance(value, dict):
            raise ValueError(f"{path}, line {number} is a {type(value).__name__}, expected fields")
        yield number, value
