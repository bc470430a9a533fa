"""card: what compression did to a model, item by item, beside the dense one."""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ..core.arguments import Kind, takes
from ..core.byte_counts import nbytes
from ..core.leaf import is_encoded
from ..models.example_inputs import WINDOW_TOKENS
from ..models.example_inputs import window as window_of
from ..models.model import Model
from .card_columns import columns_of
from .card_result import DENSE, FLOOR, MODEL, Card
from .card_rows import AskedModel, Places
from .origin import forms, versions
from .probe import Probe
from .prompt_template import fields_of
from .published_sets import published_tasks
from .task import Task
from .task_files import read_task
from .task_scores import TaskScores
from .text_noise import KINDS, noisy_task
from .token_divergence import TokenDivergence, same_vocabulary

_QUICK = ("arc_easy", "piqa", "sst2", "crows_pairs", "stsb", "sst2_probe")
_TASKS = Kind(
    "a folder, or a list of tasks",
    lambda x: (
        isinstance(x, str | os.PathLike)
        or (isinstance(x, list | tuple) and all(isinstance(task, Task) for task in x))
    ),
)
_MODEL = Kind("a Model, such as jm.models.load gives", lambda x: isinstance(x, Model))


@dataclasses.dataclass(frozen=True)
class Suite:
    """How much a card measures: items of a task (None for all), windows of the text and so on."""

    items: int | None
    window: int | None
    windows: int | None
    noise: tuple[str, ...]
    explained: int


SUITES = {
    "quick": Suite(32, 256, 8, ("typo",), 4),
    "full": Suite(None, None, 32, KINDS, 32),
}


@takes(model=_MODEL, reference=_MODEL, data=_TASKS)
def card(
    model: Model,
    reference: Model,
    *,
    suite: str = "quick",
    data: Any = (),
    text: str | None = None,
    out: str | os.PathLike | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Card:
    """Bytes, seconds, loss, tasks, calibration, robustness, attribution and fairness of a model.

    Three rows are measured: the dense reference, the reference in bfloat16, which is the noise
    floor, and the model. Each is compared with the dense one in pairs of items.

    Args:
        model: the compressed model, with a tokenizer.
        reference: the dense one.
        suite: "quick" has 32 items of a task and 2,048 tokens, "full" all items.
        data: the tasks; or a folder with published sets (`jm.evaluation.published_tasks`) and
            `*.jsonl` files of tasks, of which those are taken that the model can answer. The quick
            suite takes some of the published ones.
        text: what perplexity and KL divergence are measured on; of models that predict text.
        out: a folder where the items are kept. What is there of the same weights and tasks is not
            measured again, so that a suite that was stopped goes on.
        progress: `progress(what, done, parts)` is called now and then.

    Raises:
        ValueError: the suite is none of the two; the vocabularies differ; the reference is
            encoded; a model has no tokenizer; there is no task and no text that the model can be
            asked.
        TypeError: an argument has another type.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmem as jm
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from jaxmem.architectures import llama
        >>> sizes = dict(vocab=4, width=8, ffn=8, layers=1, heads=1, kv_heads=1, head_dim=8)
        >>> config = llama.Config(**sizes)
        >>> params = llama.module(config).init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
        >>> words = {"good": 0, "bad": 1, "film": 2, "?": 3}
        >>> tokenizer = Tokenizer(models.WordLevel(words, unk_token="?"))
        >>> tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> model = jm.models.Model(config, params["params"], tokenizer, "random")
        >>> items = ({"text": "film good", "answer": 0}, {"text": "film bad", "answer": 1})
        >>> task = jm.evaluation.Task("mood", "choice", items, "{text}", ("good", "bad"))
        >>> found = jm.card(model, model, data=[task])
        >>> found.rows["model"]["tasks"]["mood"]["changed"]
        0.0
    """
    if suite not in SUITES:
        raise ValueError(f"suite is {suite!r}, expected one of {', '.join(SUITES)}")
    size, predicts = SUITES[suite], hasattr(model.config, "cache")
    if any(map(is_encoded, jax.tree.leaves(reference.tensors, is_leaf=is_encoded))):
        raise ValueError(f"the reference {reference.source} is encoded, expected a dense model")
    if predicts != hasattr(reference.config, "cache"):
        raise ValueError(f"of {model.source} and {reference.source} one is an encoder")
    for one in (model, reference):
        if one.tokenizer is None:
            raise ValueError(f"{one.source} has no tokenizer, which a card takes")
    if predicts:
        same_vocabulary(model, reference)
    tasks = [task.sample(size.items) for task in _tasks(data, suite, predicts)]
    if not tasks and (text is None or not predicts):
        raise ValueError("there is nothing to measure: give data with tasks, or a text")
    noisy = [(task, kind) for task in _with_prompts(tasks, suite) for kind in size.noise]
    tasks += [noisy_task(task, kind) for task, kind in noisy]
    explained = [task for task in _with_prompts(tasks, "quick") if "." not in task.name]
    places = Places(pathlib.Path(out) if out is not None else None, progress)
    models = {
        DENSE: reference,
        FLOOR: dataclasses.replace(reference, tensors=_in_bfloat16(reference.params)),
        MODEL: model,
    }
    items: dict[str, dict[str, TaskScores]] = {}
    divergence: dict[str, TokenDivergence] = {}
    probes: dict[str, Probe] = {}
    rows_asked = {name: AskedModel(name, one, probes, places) for name, one in models.items()}
    for name, one in models.items():
        asked = rows_asked[name]
        items[name] = {task.name: asked.scores(task) for task in tasks}
        for task in explained[:1]:
            dense = items[DENSE][task.name]
            items[name]["attribution"] = asked.worth(task, dense, size.explained)
        if predicts and text is not None:
            window = min(size.window or WINDOW_TOKENS, window_of(one))
            divergence[name] = asked.divergence(rows_asked[DENSE], text, window, size.windows)
    rows = {}
    for name, one in models.items():
        columns = columns_of(tasks, items[DENSE], items[name], divergence.get(name))
        rows[name] = {"space": {"resident": nbytes(one.params)}, **columns}
    origin = {
        "model": model.source,
        "reference": reference.source,
        "suite": suite,
        "weights_sha256": {name: places.hashes[name] for name in models if name in places.hashes},
        "forms": forms(model.params),
        "text_sha256": None if text is None else hashlib.sha256(text.encode()).hexdigest(),
        "tasks_sha256": {task.name: task.sha256 for task in tasks},
        "versions": versions(),
    }
    block = divergence[MODEL].block() if divergence else ""
    return Card(origin=origin, rows=rows, llama_cpp=block)


def _tasks(data: Any, suite: str, predicts: bool) -> list[Task]:
    """The tasks of `data` that a model can answer: one that predicts text, or gives vectors."""
    kinds = ("choice", "generation") if predicts else ("pairs", "retrieval", "probe")
    if isinstance(data, str | os.PathLike):
        published = published_tasks(data).values()
        own = [read_task(path) for path in sorted(pathlib.Path(data).glob("*.jsonl"))]
        found = [task for task in published if suite == "full" or task.name in _QUICK] + own
        return [task for task in found if task.kind in kinds]
    for task in data:
        if task.kind not in kinds:
            raise ValueError(f"{task.name} is of kind {task.kind}, expected one of {kinds}")
    names = [task.name for task in data]
    if len(set(names)) < len(names):
        raise ValueError(f"the tasks are named {names}, expected another name for each")
    return list(data)


def _with_prompts(tasks: Sequence[Task], suite: str) -> list[Task]:
    """The tasks with a text in their prompts whose answers are classes; one in a quick suite."""
    found = []
    for task in tasks:
        texts = any(isinstance(task.items[0][name], str) for name in fields_of(task.prompt))
        if texts and task.kind in ("choice", "probe"):
            found.append(task)
    found.sort(key=lambda task: task.name not in ("sst2", "sst2_probe"))
    return found if suite == "full" else found[:1]


def _in_bfloat16(params: Any) -> Any:
    """The tree with its floats in bfloat16."""
    cast = lambda x: x.astype(jnp.bfloat16) if jnp.issubdtype(x.dtype, jnp.floating) else x
    return jax.tree.map(cast, params)
