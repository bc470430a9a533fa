"""card: what compression did to a model, item by item, beside the dense one."""

import dataclasses
import itertools
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ..core.arguments import NAMES, Kind, takes
from ..io.scalar_writers import ScalarWriter
from ..models.example_inputs import WINDOW_TOKENS
from ..models.example_inputs import window as window_of
from ..models.model import Model
from .card_columns import columns_of, row_of
from .card_explanations import EXPLANATIONS, explained, one_explained
from .card_inputs import (
    check_models,
    check_names,
    check_texts,
    sha256_of,
    tasks_of,
    with_prompts,
)
from .card_measures import bit_flips_of, continuations_of, membership_of, seconds_of
from .card_result import DENSE, FLOOR, MODEL, Card
from .card_rows import AskedModel, Places
from .card_suites import SUITES, Suite
from .model_bytes import space_of
from .origin import forms, plan_of, seconds_to_encode, source_of, versions
from .probe import Probe
from .task import Task
from .task_scores import TaskScores
from .text_noise import noisy_task
from .token_divergence import TokenDivergence, joined_divergence

_TASKS = Kind(
    "a folder, or a list of tasks",
    lambda x: (
        isinstance(x, str | os.PathLike)
        or (isinstance(x, list | tuple) and all(isinstance(task, Task) for task in x))
    ),
)
_TEXT = Kind(
    "a text, texts by name, or None",
    lambda x: (
        x is None
        or isinstance(x, str)
        or (isinstance(x, Mapping) and all(isinstance(y, str) for pair in x.items() for y in pair))
    ),
)
_NAMES = Kind("a list of names, or None", lambda x: x is None or NAMES.accepts(x))
_MODEL = Kind("a Model, such as jm.models.load gives", lambda x: isinstance(x, Model))


@takes(model=_MODEL, reference=_MODEL, data=_TASKS, text=_TEXT, words=_NAMES, explain=_NAMES)
def card(
    model: Model,
    reference: Model,
    *,
    suite: str = "quick",
    data: Any = (),
    text: str | Mapping[str, str] | None = None,
    seen: str | None = None,
    unseen: str | None = None,
    words: Sequence[str] | None = None,
    explain: Sequence[str] | None = None,
    out: str | os.PathLike | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    writer: ScalarWriter | None = None,
) -> Card:
    """Bytes, seconds, loss, tasks, calibration, robustness, attribution, fairness, privacy, origin.

    Three rows are measured: the dense reference, the reference with its weights rounded to
    bfloat16, which is the noise floor, and the model. Each is compared with the dense one in pairs
    of items. Tasks are asked of decoded weights where these run in the reference's programs.

    Args:
        model: the compressed model, with a tokenizer.
        reference: the dense one.
        suite: "quick" has 2,048 tokens of the text and 32 items of a task, at even distances in the
            half of it with the shorter texts; "full" has all items.
        data: the tasks; or a folder with published sets (`jm.evaluation.published_tasks`) and
            `*.jsonl` files of tasks, of which those are taken that the model can answer. The quick
            suite takes some of the published ones.
        text: what perplexity, KL divergence, seconds and the harm of flipped bits are measured on;
            of models that predict text. Several texts by name, such as those of languages, have an
            equal number of windows, and the loss of each; the rest is measured on the first.
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
    texts = {"": text} if isinstance(text, str) else dict(text or {})
    text = next(iter(texts.values()), None)
    explain = size.explain if explain is None else tuple(explain)
    if not set(explain) <= set(EXPLANATIONS):
        raise ValueError(f"explain is {explain}, expected some of {', '.join(EXPLANATIONS)}")
    check_models(model, reference)
    check_texts(predicts, texts, seen, unseen, words)
    tasks = [size.chosen(task) for task in tasks_of(data, suite, predicts)]
    if not tasks and (text is None or not predicts):
        raise ValueError("there is nothing to measure: give data with tasks, or a text")
    to_explain = with_prompts(tasks, "quick")
    noisy = [noisy_task(x, kind) for x in with_prompts(tasks, suite) for kind in size.noise]
    check_names([*tasks, *noisy])
    places = Places(pathlib.Path(out) if out is not None else None, progress)
    items: dict[str, dict[str, TaskScores]] = {}  # by row and task
    words_of: dict[str, dict[str, TaskScores]] = {}  # by row and kind
    divergence: dict[str, TokenDivergence] = {}
    probes: dict[str, Probe] = {}
    asked_models = {DENSE: reference, FLOOR: _rounded(reference), MODEL: model}
    rows_asked = {
        name: AskedModel(name, one, reference, probes, places) for name, one in asked_models.items()
    }
    more: dict[str, dict[str, dict]] = {}
    for name, asked in rows_asked.items():
        stored = asked.model if name != FLOOR else _in_bfloat16(reference)
        more[name] = {"space": space_of(stored, with_file=name != FLOOR)}
        if name == MODEL and (seconds := seconds_to_encode(model.source)) is not None:
            more[name]["time"] = {"encode": seconds}
        items[name] = {task.name: asked.scores(task) for task in (*tasks, *noisy)}
        to_explain = [task for task in to_explain if items[DENSE][task.name].items][:1]
        words_of[name] = {
            kind: explained(asked, task, items[DENSE][task.name], size.explained, kind)
            for task, kind in itertools.product(to_explain, explain)
        }
        if predicts and text is not None:
            dense_row = rows_asked[DENSE]
            divergence[name], found = _of_texts(asked, dense_row, texts, words, size)
            for column, values in found.items():
                more[name][column] = {**more[name].get(column, {}), **values}
        if seen is not None and unseen is not None:
            more[name]["privacy"] = vars(membership_of(asked, seen, unseen, size.texts))
        asked.forget()
    rows = {}
    for name in rows_asked:
        columns = columns_of(tasks, noisy, items[DENSE], items[name], divergence.get(name))
        rows[name] = row_of(columns, words_of[DENSE], words_of[name], more[name])
    origin = {
        "suite": suite,
        "weights_sha256": dict(places.hashes),
        "text_sha256": sha256_of(texts),
        "tasks_sha256": {task.name: task.sha256 for task in (*tasks, *noisy)},
    }
    origin = _origin_of(model, reference) | origin
    block = divergence[MODEL].block() if divergence else ""
    one = one_explained(to_explain, {name: words_of[name] for name in (DENSE, MODEL)})
    made = Card(origin=origin, rows=rows, llama_cpp=block, explained=one)
    if writer:
        writer.write_scalars(0, made.scalars())
    return made


def _of_texts(
    asked: AskedModel,
    dense: AskedModel,
    texts: Mapping[str, str],
    words: Sequence[str] | None,
    size: Suite,
) -> tuple[TokenDivergence, dict[str, dict[str, Any]]]:
    """(the divergence, the columns that texts give beside it); few of the noise floor."""
    window = min(size.window or WINDOW_TOKENS, window_of(asked.model))
    each = asked.divergences(dense, texts, window, size.windows)
    whole, text = joined_divergence(list(each.values())), next(iter(texts.values()))
    ids = asked.ids(text)
    found: dict[str, dict[str, Any]] = {}
    if words:
        found["fairness"] = continuations_of(asked, dense, text, words, size.items)
    if len(each) > 1:
        found["loss"] = {"by_text": {name: part.short_summary() for name, part in each.items()}}
    if asked.row != FLOOR:
        flips = bit_flips_of(asked, ids, window, size.flip_rates)
        found["robustness"] = {"bit_flips": flips}
        found["space"] = {} if whole.peak is None else {"peak": whole.peak}
    if asked.row != FLOOR and asked.model.config.cache is not None:
        found["time"] = seconds_of(asked, ids)
    return whole, found


def _origin_of(model: Model, reference: Model) -> dict[str, Any]:
    """Where the models come from, and what the model is made of."""
    return {
        "model": model.source,
        "reference": reference.source,
        "sources": {DENSE: source_of(reference.source), MODEL: source_of(model.source)},
        "forms": forms(model.params),
        "plan": plan_of(model.params),
        "versions": versions(),
    }


def _in_bfloat16(model: Model) -> Model:
    """The shapes of the model with its floats in bfloat16."""
    floats = lambda x: jnp.issubdtype(x.dtype, jnp.floating)
    cast = lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16 if floats(x) else x.dtype)
    return dataclasses.replace(model, tensors=jax.tree.map(cast, model.params))


def _rounded(model: Model) -> Model:
    """The model with its weights rounded to bfloat16; it runs in the programs of the model."""
    floats = lambda x: jnp.issubdtype(x.dtype, jnp.floating)
    cast = lambda x: x.astype(jnp.bfloat16).astype(x.dtype) if floats(x) else x
    return dataclasses.replace(model, tensors=jax.tree.map(cast, model.params))
