"""answer_flips: answers that a compressed model changed, item by item (Dutta et al., 2024).

Accuracy may stay while many answers flip. McNemar's exact test (1947) says how probable the counts
right → wrong and wrong → right are if both ways are as likely: twice the smaller tail of
Binomial(both, ½). Total variation is the mean over items of ½ Σ |p − q| of the choices.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..core.arguments import Kind, takes
from .confidence import Estimate

SCORED = Kind(
    "a list of scored items, each a dict",
    lambda x: isinstance(x, list | tuple) and all(isinstance(item, Mapping) for item in x),
)


@dataclasses.dataclass(frozen=True)
class Flips:
    """Of `items` answered by two models: shares, counts, and the difference of their scores.

    `changed` is the share of items with another answer. `difference` is score − score before, with
    the 95 % interval of the items' differences. `total_variation` is None where an item has no
    probabilities.
    """

    items: int
    changed: float
    right_to_wrong: int
    wrong_to_right: int
    p_value: float
    difference: Estimate
    total_variation: float | None = None


@takes(before=SCORED, after=SCORED)
def answer_flips(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> Flips:
    """What changed between the item scores of two models on one task.

    An item has `score`, `answer` (any value) and perhaps `logprobs`, as `score_task` writes them.
    Right is a score of at least ½.

    Raises:
        ValueError: the items are not the same ones, or there are none.

    Example:
        >>> item = lambda i, score: {"item": i, "score": score, "answer": score}
        >>> flips = answer_flips([item(0, 1.0), item(1, 0.0)], [item(0, 0.0), item(1, 0.0)])
        >>> flips.changed, flips.right_to_wrong, flips.p_value
        (0.5, 1, 1.0)
    """
    check_same_items(before, after)
    was, now = (np.array([float(x["score"]) for x in items]) for items in (before, after))
    lost = int(((was >= 0.5) & (now < 0.5)).sum())
    won = int(((was < 0.5) & (now >= 0.5)).sum())
    has_probabilities = all(x.get("logprobs") for x in (*before, *after))
    return Flips(
        items=len(before),
        changed=float(np.mean([a["answer"] != b["answer"] for a, b in zip(before, after)])),
        right_to_wrong=lost,
        wrong_to_right=won,
        p_value=mcnemar(lost, won),
        difference=Estimate.of(now - was),
        total_variation=_total_variation(before, after) if has_probabilities else None,
    )


def mcnemar(one_way: int, other_way: int) -> float:
    """The exact two-sided p-value of two counts; 1 if both are 0.

    Example:
        >>> mcnemar(0, 10) == 2 / 2**10
        True
    """
    from scipy.special import bdtr  # a dependency of jax

    both = one_way + other_way
    return min(1.0, 2 * float(bdtr(min(one_way, other_way), both, 0.5))) if both else 1.0


def probabilities(logprobs: Sequence[float]) -> np.ndarray:
    """The choices' probabilities: exp of their loglikelihoods, divided by their sum."""
    x = np.asarray(logprobs, np.float64)
    p = np.exp(x - x.max())
    return p / p.sum()


def check_same_items(before: Sequence[Mapping], after: Sequence[Mapping]) -> None:
    """Refuses lists that are not scores of the same items in the same order."""
    if not before:
        raise ValueError("there are no items, expected at least one")
    for item in (*before, *after):
        if not {"item", "score", "answer"} <= item.keys():
            raise ValueError(f"a scored item has {list(item)}, expected item, score and answer")
    names = [[x["item"] for x in items] for items in (before, after)]
    if names[0] != names[1]:
        raise ValueError(
            f"{len(before)} and {len(after)} items are not the same ones, expected pairs"
        )


def _total_variation(before: Sequence[Mapping], after: Sequence[Mapping]) -> float:
    pairs = ((probabilities(a["logprobs"]), probabilities(b["logprobs"]))
             for a, b in zip(before, after))  # fmt: skip
    return float(np.mean([np.abs(p - q).sum() / 2 for p, q in pairs]))
