"""What makes the last choice among plans or structures: the KL to the dense model, or a task."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..core.leaf import decode
from ..evaluation.perplexity_kl import evaluate
from ..evaluation.task import Task
from ..evaluation.task_scores import score_task
from ..models.example_inputs import window
from ..models.model import Model

COMPARE_WINDOWS = 4  # windows at the end of the text that plans are compared on


def kl_to_dense(dense: Model, model: Model, encoded: Any, ids: np.ndarray) -> float:
    """KL(dense ‖ `model` with the encoded params), in nats, on the last windows of a text."""
    length = window(dense)
    count = min(COMPARE_WINDOWS, len(ids) // length)
    evaluation = evaluate(
        model.apply,
        decode(encoded),
        ids[len(ids) - count * length :],
        reference=(dense.apply, dense.params),
        window=length,
    )
    return evaluation.kl.mean


def judged(
    dense: Model, model: Model, encoded: Any, ids: np.ndarray, judge: Task | None
) -> dict[str, float]:
    """{"kl": ...}, with the mean "score" of the judge's items if there is one."""
    found = {"kl": kl_to_dense(dense, model, encoded, ids)}
    if judge is not None:
        found["score"] = score_task(judge, model, params=decode(encoded)).mean
    return found


def least_harmed(rows: Sequence[dict[str, float]]) -> int:
    """The number of the row with the highest score, of equal ones that with the least KL.

    Example:
        >>> least_harmed([{"kl": 0.2, "score": 0.5}, {"kl": 0.3, "score": 0.6}])
        1
        >>> least_harmed([{"kl": 0.2}, {"kl": 0.1}])
        1
    """
    return min(range(len(rows)), key=lambda i: (-rows[i].get("score", 0.0), rows[i].get("kl", 0.0)))
