"""What a card is made of: which tasks and texts, and whether two models can be compared."""

import hashlib
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from ..core.leaf import is_encoded
from ..models.model import Model
from .prompt_template import fields_of
from .published_sets import published_tasks
from .task import LETTERS, Task
from .task_files import read_task
from .text_overlap import text_score
from .token_divergence import same_vocabulary

_QUICK = ("arc_easy", "piqa", "sst2", "crows_pairs", "stsb", "sst2_probe")


def sha256_of(texts: Mapping[str, str]) -> Any:
    """The hash of each text by name; of one text its hash alone, of none None."""
    found = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}
    return found.get("", found or None)


def check_texts(
    predicts: bool,
    texts: Mapping[str, str],
    seen: str | None,
    unseen: str | None,
    words: Sequence[str] | None,
) -> None:
    """Refuses texts and words that say nothing of a model."""
    if (seen is None) != (unseen is None) or (seen is not None and not predicts):
        raise ValueError("privacy wants seen and unseen texts, and a model that predicts text")
    for name in texts:
        if not set(name) <= LETTERS or (not name and len(texts) > 1):
            raise ValueError(f"a text is named {name!r}, expected letters, digits or _.-")
    if words is not None and (not texts or not predicts or not all(words)):
        raise ValueError("words are counted in what is written after a text: give words and a text")


def check_models(model: Model, reference: Model) -> None:
    """Refuses models that cannot be compared."""
    if any(map(is_encoded, jax.tree.leaves(reference.tensors, is_leaf=is_encoded))):
        raise ValueError(f"the reference {reference.source} is encoded, expected a dense model")
    predicts = hasattr(model.config, "cache")
    if predicts != hasattr(reference.config, "cache"):
        raise ValueError(f"of {model.source} and {reference.source} one is an encoder")
    for one in (model, reference):
        if one.tokenizer is None:
            raise ValueError(f"{one.source} has no tokenizer, which a card takes")
    if predicts:
        same_vocabulary(model, reference)


def tasks_of(data: Any, suite: str, predicts: bool) -> list[Task]:
    """The tasks of `data` that a model can answer: one that predicts text, or gives vectors."""
    kinds = ("choice", "generation") if predicts else ("pairs", "retrieval", "probe")
    if isinstance(data, str | os.PathLike):
        published = published_tasks(data).values()
        own = [read_task(path) for path in sorted(pathlib.Path(data).glob("*.jsonl"))]
        found = [task for task in published if suite == "full" or task.name in _QUICK] + own
        data = [task for task in found if task.kind in kinds]
    for task in data:
        if task.kind not in kinds:
            raise ValueError(f"{task.name} is of kind {task.kind}, expected one of {kinds}")
        if task.kind == "generation":  # a package that is missing is said before all else
            text_score(task.metric, "", task.references(task.items[0]))
    return list(data)


def check_names(tasks: Sequence[Task]) -> None:
    """Refuses two tasks of one name, of which one may have noise in its texts.

    Names that begin with "tokens" are those of the texts, when two cards are compared.
    """
    names = [task.name for task in tasks]
    if len(set(names)) < len(names):
        raise ValueError(f"the tasks are named {names}, expected another name for each")
    if wrong := [name for name in names if name.split(".")[0] == "tokens"]:
        raise ValueError(f"a task is named {wrong[0]!r}, as texts are: expected another name")


def with_prompts(tasks: Sequence[Task], suite: str) -> list[Task]:
    """The tasks with a text in their prompts whose answers are classes; one in a quick suite."""
    found = []
    for task in tasks:
        texts = any(isinstance(task.items[0][name], str) for name in fields_of(task.prompt))
        if texts and task.kind in ("choice", "probe"):
            found.append(task)
    found.sort(key=lambda task: task.name not in ("sst2", "sst2_probe"))
    return found if suite == "full" else found[:1]
