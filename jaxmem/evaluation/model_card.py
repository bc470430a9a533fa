"""card: what compression did to a model, item by item, beside the dense one."""

import dataclasses
import hashlib
import itertools
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ..core.arguments import NAMES, Kind, takes
from ..core.leaf import is_encoded
from ..io.scalar_writers import ScalarWriter
from ..models.example_inputs import WINDOW_TOKENS
from ..models.example_inputs import window as window_of
from ..models.model import Model
from .card_columns import COLUMNS, columns_of
from .card_explanations import EXPLANATIONS, explained, one_explained
from .card_measures import bit_flips_of, continuations_of, membership_of, seconds_of
from .card_result import DENSE, FLOOR, MODEL, Card
from .card_rows import AskedModel, Places
from .card_suites import SUITES, Suite
from .model_bytes import space_of
from .origin import forms, plan_of, source_of, versions
from .probe import Probe
from .prompt_template import fields_of
from .published_sets import published_tasks
from .task import Task
from .task_files import read_task
from .task_scores import TaskScores
from .text_noise import noisy_task
from .token_divergence import TokenDivergence, same_vocabulary

_QUICK = ("arc_easy", "piqa", "sst2", "crows_pairs", "stsb", "sst2_probe")
_TASKS = Kind(
    "a folder, or a list of tasks",
    lambda x: (
        isinstance(x, str | os.PathLike)
        or (isinstance(x, list | tuple) and all(isinstance(task, Task) for task in x))
    ),
)
_NAMES = Kind("a list of names, or None", lambda x: x is None or NAMES.accepts(x))
_MODEL = Kind("a Model, such as jm.models.load gives", lambda x: isinstance(x, Model))


@takes(model=_MODEL, reference=_MODEL, data=_TASKS, words=_NAMES, explain=_NAMES)
def card(
    model: Model,
    reference: Model,
    *,
    suite: str = "quick",
    data: Any = (),
    text: str | None = None,
    seen: str | None = None,
    unseen: str | None = None,
    words: Sequence[str] | None = None,
    explain: Sequence[str] | None = None,
    out: str | os.PathLike | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    writer: ScalarWriter | None = None,
) -> Card:
    """Bytes, seconds, loss, tasks, calibration, robustness, attribution, fairness, privacy, origin.

    Three rows are measured: the dense reference, the reference in bfloat16, which is the noise
    floor, and the model. Each is compared with the dense one in pairs of items.

    Args:
        model: the compressed model, with a tokenizer.
        reference: the dense one.
        suite: "quick" has 32 items of a task and 2,048 tokens, "full" all items.
        data: the tasks; or a folder with published sets (`jm.evaluation.published_tasks`) and
            `*.jsonl` files of tasks, of which those are taken that the model can answer. The quick
            suite takes some of the published ones.
        text: what perplexity, KL divergence, seconds and the harm of flipped bits are measured on;
            of models that predict text.
        seen: text that the reference was trained on, for the privacy column; with `unseen`.
        unseen: text of the same kind that it was not trained on.
        words: those that a text should not have, such as insults; counted in what the models write
            after pieces of `text`.
        explain: what is asked of the words of some texts: "occlusion" (the answer without a word),
            "gradients" (integrated, from the vector that pads or ends texts), "shapley" (kernel
            SHAP) and "swaps" (the two words whose swap the model's own gradient expects to harm
            most). None: of a quick suite "occlusion", of a full one all of them.
        out: a folder where the items are kept. What is there of the same weights and tasks is not
            measured again, so that a suite that was stopped goes on.
        progress: `progress(what, done, parts)` is called now and then.
        writer: its `write_scalars(0, numbers)` takes the model's row, as that of `jm.train` does.

    Raises:
        ValueError: the suite is none of the two; `explain` names something else; the vocabularies
            differ; the reference is encoded; a model has no tokenizer; of `seen` and `unseen` one
            is missing, or of `words` the text; there is nothing that the model can be asked.
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
    explain = size.explain if explain is None else tuple(explain)
    if not set(explain) <= set(EXPLANATIONS):
        raise ValueError(f"explain is {explain}, expected some of {', '.join(EXPLANATIONS)}")
    _check_models(model, reference)
    _check_texts(predicts, text, seen, unseen, words)
    tasks = [task.sample(size.items) for task in _tasks(data, suite, predicts)]
    if not tasks and (text is None or not predicts):
        raise ValueError("there is nothing to measure: give data with tasks, or a text")
    noisy = [(task, kind) for task in _with_prompts(tasks, suite) for kind in size.noise]
    tasks += [noisy_task(task, kind) for task, kind in noisy]
    to_explain = [task for task in _with_prompts(tasks, "quick") if "." not in task.name]
    places = Places(pathlib.Path(out) if out is not None else None, progress)
    items: dict[str, dict[str, TaskScores]] = {}
    divergence: dict[str, TokenDivergence] = {}
    probes: dict[str, Probe] = {}
    rows_asked = {DENSE: AskedModel(DENSE, reference, probes, places)}
    floor = dataclasses.replace(reference, tensors=_in_bfloat16(reference.params))
    for name, one in ((FLOOR, floor), (MODEL, model)):
        rows_asked[name] = AskedModel(name, one, probes, places)
    more: dict[str, dict[str, dict]] = {}
    for name, asked in rows_asked.items():
        more[name] = {"space": space_of(asked.model, with_file=name != FLOOR)}
        items[name] = {task.name: asked.scores(task) for task in tasks}
        for task, kind in itertools.product(to_explain[:1], explain):
            dense = items[DENSE][task.name]
            items[name][kind] = explained(asked, task, dense, size.explained, kind)
        if predicts and text is not None:
            window = min(size.window or WINDOW_TOKENS, window_of(asked.model))
            divergence[name] = asked.divergence(rows_asked[DENSE], text, window, size.windows)
            found = _of_text(asked, text, window, size, divergence[name])
            if words:
                dense = rows_asked[DENSE]
                found["fairness"] = continuations_of(asked, dense, text, words, size.items)
            for column, values in found.items():
                more[name][column] = {**more[name].get(column, {}), **values}
        if seen is not None and unseen is not None:
            more[name]["privacy"] = vars(membership_of(asked, seen, unseen, size.texts))
    rows = {}
    for name in rows_asked:
        columns = columns_of(tasks, items[DENSE], items[name], divergence.get(name))
        joined = {key: {**columns.get(key, {}), **more[name].get(key, {})} for key in COLUMNS}
        rows[name] = {key: column for key, column in joined.items() if column}
    origin = {
        "model": model.source,
        "reference": reference.source,
        "suite": suite,
        "weights_sha256": dict(places.hashes),
        "sources": {name: source_of(rows_asked[name].model.source) for name in (DENSE, MODEL)},
        "forms": forms(model.params),
        "plan": plan_of(model.params),
        "text_sha256": None if text is None else hashlib.sha256(text.encode()).hexdigest(),
        "tasks_sha256": {task.name: task.sha256 for task in tasks},
        "versions": versions(),
    }
    block = divergence[MODEL].block() if divergence else ""
    one = one_explained(to_explain[:1], {name: items[name] for name in (DENSE, MODEL)})
    made = Card(origin=origin, rows=rows, llama_cpp=block, explained=one)
    if writer:
        writer.write_scalars(0, made.scalars())
    return made


def _of_text(
    asked: AskedModel, text: str, window: int, size: Suite, divergence: TokenDivergence
) -> dict[str, dict[str, Any]]:
    """The columns that a text gives beside the loss; bfloat16 is slow where it is emulated."""
    ids = asked.ids(text)
    found: dict[str, dict[str, Any]] = {
        "robustness": {"bit_flips": bit_flips_of(asked, ids, window, size.flip_rates)},
        "space": {} if divergence.peak is None else {"peak": divergence.peak},
    }
    if asked.row != FLOOR and asked.model.config.cache is not None:
        found["time"] = seconds_of(asked, ids)
    return found


def _check_texts(
    predicts: bool,
    text: str | None,
    seen: str | None,
    unseen: str | None,
    words: Sequence[str] | None,
) -> None:
    """Refuses texts and words that say nothing of a model."""
    if (seen is None) != (unseen is None) or (seen is not None and not predicts):
        raise ValueError("privacy wants seen and unseen texts, and a model that predicts text")
    if words is not None and (text is None or not predicts or not all(words)):
        raise ValueError("words are counted in what is written after a text: give words and a text")


def _check_models(model: Model, reference: Model) -> None:
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
