"""score_task: a model's answer and score of each item of a task."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..core.arguments import takes
from ..models.continuation_scores import ContinuationScorer
from ..models.generation import generate
from ..models.model import Model
from ..models.text_models import context
from .probe import Probe
from .prompt_template import fill
from .ranking_scores import ndcg
from .task import Task
from .text_overlap import text_score

_RANKED = 10

Embed = Callable[[Sequence[str]], np.ndarray]


@dataclasses.dataclass(frozen=True)
class TaskScores:
    """`items` as plain data, and how many items were `skipped`: longer than the model's context.

    Each has `item` (its number), `score`, `answer`, and where the kind has them `logprobs` of its
    choices, `right` (the number of the right one) and `group`.
    """

    task: str
    items: tuple[Mapping[str, Any], ...]
    skipped: int = 0

    @property
    def mean(self) -> float:
        """The mean score of the items."""
        return float(np.mean([item["score"] for item in self.items]))


class AllTooLong(ValueError):
    """No item of a task fits the model's context."""


@takes()
def score_task(
    task: Task,
    model: Model,
    *,
    params: Any = None,
    scorer: ContinuationScorer | None = None,
    embed: Embed | None = None,
    probe: Probe | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> TaskScores:
    """Runs a task on a model, item by item.

    Args:
        task: what is asked.
        model: the model; of texts, with a tokenizer.
        params: its weights, dense or encoded; None for `model.params`.
        scorer: of choices; given, it need not compile again.
        embed: vectors (n, d) of n texts, which retrieval, pairs and probes take.
        probe: fitted before, on the vectors of the dense model; None fits it here.
        progress: `progress(done, parts)` is called now and then.

    Raises:
        ValueError: the model has no tokenizer, or is none of the kind that the task wants; all
            items are longer than its context; a choice adds no token to its prompt.
    """
    if model.tokenizer is None:
        raise ValueError(f"{model.source} has no tokenizer, which the task {task.name} takes")
    if task.kind in ("retrieval", "pairs", "probe") and embed is None:
        raise ValueError(f"{task.name} wants vectors of texts, which {model.source} does not give")
    params = model.params if params is None else params
    found: list[Mapping[str, Any] | None]
    match task.kind:
        case "choice":
            scorer = scorer or ContinuationScorer(model, params)
            found = _choices(task, model, scorer, progress)
        case "generation":
            found = _texts(task, dataclasses.replace(model, tensors=params), progress)
        case "pairs":
            found = _pairs(task, embed)
        case "retrieval":
            found = _rankings(task, embed)
        case _:
            found = _classes(task, embed, probe or fitted_probe(task, embed))
    items = tuple(item for item in found if item is not None)
    if not items:
        raise AllTooLong(f"all {len(found)} items of {task.name} are longer than the context")
    return TaskScores(task.name, items, len(found) - len(items))


def encoded_pair(model: Model, prompt: str, text: str) -> tuple[list[int], list[int]]:
    """The token ids of a prompt, and those that a text after it adds; spaces go to the text.

    Without a prompt the first token is that which begins or ends texts, as in lm-eval.
    """
    encode = lambda text: model.tokenizer.encode(text).ids
    if not prompt:
        ids = model.tokenizer.encode(text, add_special_tokens=False).ids
        first = getattr(model.config, "bos", None)
        first = next(iter(model.config.eos), None) if first is None else first
        return ([first], ids) if first is not None and ids[:1] != [first] else (ids[:1], ids[1:])
    stem = prompt.rstrip()
    whole, before = encode(prompt + text), encode(stem)
    return before, whole[len(before) :]


def _choices(
    task: Task,
    model: Model,
    scorer: ContinuationScorer,
    progress: Callable[[int, int], None] | None,
) -> list[Mapping[str, Any] | None]:
    most, requests, rows = context(model), [], []
    for item in task.items:
        prompt = fill(task.prompt, item)
        texts = task.choice_texts(item)
        between = task.delimiter if prompt else ""
        pairs = [encoded_pair(model, prompt, between + text) for text in texts]
        for text, pair in zip(texts, pairs):
            if not all(pair):
                raise ValueError(f"{task.name}: the choice {text!r} adds no token to {prompt!r}")
        fits = all(len(a) + len(b) <= most + 1 for a, b in pairs)
        rows.append(range(len(requests), len(requests) + len(pairs)) if fits else None)
        requests += pairs if fits else []
    scores = scorer(requests, progress=progress)
    found: list[Mapping[str, Any] | None] = []
    for number, (item, row) in enumerate(zip(task.items, rows)):
        if row is None:
            found.append(None)
            continue
        logprobs = np.array([scores[i].logprob for i in row])
        texts, right = task.choice_texts(item), task.answer_of(item)
        by = logprobs / [len(text) for text in texts] if task.metric == "acc_norm" else logprobs
        answer = int(by.argmax())
        score = float(answer == right)
        fields = {"item": number, "score": score, "answer": answer, "right": right}
        found.append(_grouped(task, item, fields | {"logprobs": logprobs.tolist()}))
    return found


def _texts(
    task: Task, model: Model, progress: Callable[[int, int], None] | None
) -> list[Mapping[str, Any] | None]:
    found: list[Mapping[str, Any] | None] = []
    for number, item in enumerate(task.items):
        ids = model.tokenizer.encode(fill(task.prompt, item)).ids
        if len(ids) + task.max_new_tokens > context(model):
            found.append(None)
            continue
        text = generate(model, ids, max_new_tokens=task.max_new_tokens).text
        text = cut(text.lstrip(), task.until).strip()
        score = text_score(task.metric, text, task.references(item))
        found.append(_grouped(task, item, {"item": number, "score": score, "answer": text}))
        if progress:
            progress(number + 1, len(task.items))
    return found


def cut(text: str, until: Sequence[str]) -> str:
    """The text up to the first of the texts that end it.

    Example:
        >>> cut("yes. No.", [".", "o"])
        'yes'
    """
    ends = [text.find(end) for end in until if end]
    return text[: min((end for end in ends if end >= 0), default=len(text))]


def _pairs(task: Task, embed: Embed) -> list[Mapping[str, Any]]:
    """The score of a pair is its cosine; `target` what people gave."""
    texts = [task.choice_texts(item) for item in task.items]
    a, b = (_unit(embed([pair[side] for pair in texts])) for side in (0, 1))
    cosines = (a * b).sum(axis=1)
    return [
        _grouped(task, item, {"item": i, "score": float(c), "answer": float(c),
                              "target": float(item[task.answer])})
        for i, (item, c) in enumerate(zip(task.items, cosines))
    ]  # fmt: skip


def _rankings(task: Task, embed: Embed) -> list[Mapping[str, Any]]:
    """The answer is the list of the first documents."""
    names = list(task.documents)
    documents = _unit(embed(list(task.documents.values())))
    queries = _unit(embed([fill(task.prompt, item) for item in task.items]))
    found = []
    for number, (item, query) in enumerate(zip(task.items, queries)):
        order = np.argsort(-(documents @ query), kind="stable")[:_RANKED]
        ranking = [names[i] for i in order]
        right = item[task.answer]
        gains = right if isinstance(right, Mapping) else dict.fromkeys(map(str, right), 1.0)
        fields = {"item": number, "score": ndcg(ranking, gains, _RANKED), "answer": ranking}
        found.append(_grouped(task, item, fields))
    return found


def fitted_probe(task: Task, embed: Embed) -> Probe:
    """The probe of a task, fitted on the vectors of the texts that it has for it."""
    texts = [fill(task.prompt, item) for item in task.train]
    return Probe.fit(embed(texts), [item[task.answer] for item in task.train])


def _classes(task: Task, embed: Embed, probe: Probe) -> list[Mapping[str, Any]]:
    logprobs = probe.logprobs(embed([fill(task.prompt, item) for item in task.items]))
    found = []
    for number, (item, row) in enumerate(zip(task.items, logprobs)):
        label, answer = item[task.answer], int(row.argmax())
        if label not in probe.labels:
            raise ValueError(f"item {number} of {task.name} has the label {label!r}, which the "
                             f"probe has not seen: {probe.labels}")  # fmt: skip
        right = probe.labels.index(label)
        fields = {"item": number, "score": float(answer == right), "answer": answer}
        fields |= {"right": right, "logprobs": row.tolist()}
        found.append(_grouped(task, item, fields))
    return found


def _grouped(task: Task, item: Mapping[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    return fields | ({"group": str(item[task.group])} if task.group else {})


def _unit(vectors: Any) -> np.ndarray:
    """Vectors (n, d) of length 1, in float64."""
    vectors = np.asarray(vectors, np.float64)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)
