"""What a card asks of the words of a text: their worth to an answer, and what a swap does to it."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .card_rows import AskedModel
from .confidence import Estimate
from .input_margin import InputMargin, asked_text
from .occlusion import attribution_agreement, occlusion
from .prompt_template import fields_of
from .shapley_values import kernel_shap
from .task import Task
from .task_scores import TaskScores
from .word_swaps import swap_words

EXPLANATIONS = ("occlusion", "gradients", "shapley", "swaps")
_COALITIONS = 64  # of words, for a text of more than six
_SWAPS = 2


def explained(
    asked: AskedModel, task: Task, dense: TaskScores, count: int, kind: str
) -> TaskScores:
    """Of the first `count` texts, and of the answers that the dense model gave to them."""
    field = explained_field(task)
    items = [(x["item"], task.items[x["item"]], x["answer"]) for x in dense.items[:count]]

    def measure() -> TaskScores:
        ask = _asked(asked, task, field, kind)
        return TaskScores(kind, tuple({"item": i} | ask(item, a) for i, item, a in items))

    answers = [answer for *_, answer in items]
    return asked.column(kind, f"{task.sha256} {answers}", measure)


def explained_field(task: Task) -> str:
    """The field of the prompt whose words are explained: the first text."""
    return next(n for n in fields_of(task.prompt) if isinstance(task.items[0][n], str))


def explained_columns(dense: TaskScores, found: TaskScores, kind: str) -> dict[str, dict[str, Any]]:
    """{column: {kind: what is said of it}} of one row of a card, beside the dense one."""
    if kind == "swaps":
        lost = [x["before"] - x["after"] for x in found.items]
        turned = [x["after"] < 0 <= x["before"] for x in found.items]
        swaps = {"texts": len(lost), "words": _SWAPS, "changed": float(np.mean(turned))}
        return {"robustness": {kind: swaps | {"margin_lost": Estimate.of(lost)}}}
    try:
        column = dict(vars(attribution_agreement(dense.items, found.items)))
    except ValueError as error:
        column = {"refused": str(error)}
    if kind == "gradients":
        missing, whole = (np.abs([x[n] for x in found.items]) for n in ("missing", "whole"))
        column["completeness_gap"] = float(missing.mean())
        column["completeness_gap_share"] = float(missing.sum() / max(whole.sum(), 1e-30))
    return {"attribution": {kind: column}}


def one_explained(
    tasks: Sequence[Task], rows: Mapping[str, Mapping[str, TaskScores]]
) -> dict[str, Any]:
    """The first text of a task: its words, and what they are worth in each row of a card.

    By the first way in which its words were explained; nothing if they were not.
    """
    for task, kind in itertools.product(tasks, EXPLANATIONS[:3]):
        if all(kind in scores for scores in rows.values()):
            first = {name: scores[kind].items[0] for name, scores in rows.items()}
            text = task.items[next(iter(first.values()))["item"]][explained_field(task)]
            worth = {name: list(item["worth"]) for name, item in first.items()}
            return {"task": task.name, "kind": kind, "words": text.split(" "), "worth": worth}
    return {}


def _asked(
    asked: AskedModel, task: Task, field: str, kind: str
) -> Callable[[Mapping[str, Any], int], dict[str, Any]]:
    """What is said of an item and an answer."""
    values = lambda item, answer: (
        lambda texts: asked.margins(task, [{**item, field: text} for text in texts], answer)
    )
    if kind == "occlusion":
        return lambda item, answer: {"worth": occlusion(item[field], values(item, answer)).tolist()}
    if kind == "shapley":

        def shapley(item: Mapping[str, Any], answer: int) -> dict[str, Any]:
            words, value = np.array(item[field].split(" ")), values(item, answer)
            game = lambda chosen: value([" ".join(words[kept]) for kept in chosen])
            return {"worth": kernel_shap(game, len(words), samples=_COALITIONS).tolist()}

        return shapley
    probe = asked.probe_of(task) if task.kind == "probe" else None
    margin = InputMargin(asked.model, probe)
    text_of = lambda item, answer: asked_text(asked.model, task, item, field, answer)
    if kind == "gradients":

        def gradients(item: Mapping[str, Any], answer: int) -> dict[str, Any]:
            worth, whole, missing = margin.integrated(text_of(item, answer))
            return {"worth": worth.tolist(), "whole": whole, "missing": missing}

        return gradients
    return lambda item, answer: vars(swap_words(margin, text_of(item, answer), swaps=_SWAPS))
