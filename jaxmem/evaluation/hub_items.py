"""hub_items: the items of a data set of the Hugging Face hub, or of a folder, by `datasets`."""

import pathlib
from collections.abc import Mapping
from typing import Any

FIELDS = ("path", "name", "split", "train_split", "labels", "revision")


def hub_items(
    source: Mapping[str, Any], answer: str, folder: pathlib.Path | None = None
) -> dict[str, tuple[Mapping[str, Any], ...]]:
    """{"items", "train"} of a data set; nested fields are named `outer_inner`.

    Args:
        source: what a task's file says of its data set. `path` is its name on the hub, or a folder;
            `name` of a part of it; `split`, "test" unless given; `train_split` of what a probe is
            fitted on; `labels`, the field with the labels of the choices, if the answer is one of
            them; `revision`, such as a commit.
        answer: the field of the answer.
        folder: where a relative path is looked for first.

    Raises:
        ImportError: datasets is missing; names the extra.
        ValueError: `source` has no path or another field; a part or a split is missing, a row has
            not the fields, or the hub cannot be reached.
    """
    wrong = [name for name, value in source.items() if name not in FIELDS or type(value) is not str]
    if wrong or "path" not in source:
        raise ValueError(
            f"dataset is {dict(source)}, expected texts: path, and if need be {FIELDS}"
        )
    try:
        from datasets import exceptions, load_dataset
    except ImportError as error:
        raise ImportError(
            'items of a data set want datasets: pip install "jaxmem[eval]"'
        ) from error
    path = source["path"]
    if folder is not None and (folder / path).exists():
        path = str(folder / path)
    splits = {"items": source.get("split", "test")}
    splits |= {"train": source["train_split"]} if "train_split" in source else {}
    options = {name: source[name] for name in ("name", "revision") if name in source}
    found = {}
    for part, split in splits.items():
        try:
            rows = load_dataset(path, split=split, **options)
        except (exceptions.DatasetsError, OSError, ValueError) as error:
            raise ValueError(f"the data set {path!r}, {split}, is not read: {error}") from error
        found[part] = tuple(_item(row, source.get("labels"), answer) for row in rows)
    return found


def _item(row: Mapping[str, Any], labels: str | None, answer: str) -> dict[str, Any]:
    """A row with plain fields, and the number of its answer among its labels."""
    item = _flat(row)
    if labels is None:
        return item
    if labels not in item or item.get(answer) not in item[labels]:
        of = item.get(labels, "missing")
        raise ValueError(f"the answer {item.get(answer)!r} is none of {labels}, which is {of}")
    return item | {answer: list(item[labels]).index(item[answer])}


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with the fields of mappings in it named `outer_inner`."""
    found: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            found |= {f"{name}_{inner}": x for inner, x in _flat(value).items()}
        else:
            found[name] = value
    return found
