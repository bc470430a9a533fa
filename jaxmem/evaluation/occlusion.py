"""occlusion: how much a model's answer loses without each word (Zeiler and Fergus, 2014)."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .confidence import Estimate, spearman


def occlusion(text: str, value: Callable[[Sequence[str]], np.ndarray]) -> np.ndarray:
    """value(text) − value(text without word i), (words,); `value` maps n texts to (n,) numbers.

    Example:
        >>> occlusion("a fine film", lambda texts: np.array([len(t) for t in texts])).tolist()
        [2, 5, 5]
    """
    words = text.split(" ")
    without = [" ".join(words[:i] + words[i + 1 :]) for i in range(len(words))]
    whole, *rest = value([text, *without])
    return whole - np.array(rest)


@dataclasses.dataclass(frozen=True)
class AttributionAgreement:
    """Over `texts`: the mean rank correlation of the words' worth, and where the top word stays."""

    texts: int
    rank_correlation: Estimate
    same_top_word: float


def attribution_agreement(
    before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]
) -> AttributionAgreement:
    """How alike two models explain the same texts, each item with the `worth` of its words.

    Texts of fewer than four words, or whose words are all worth the same, are left out.

    Raises:
        ValueError: the items are not of the same texts, or none is left.

    Example:
        >>> items = [{"item": 0, "worth": [1.0, 2.0, 0.5, 0.0]}]
        >>> attribution_agreement(items, items).rank_correlation.mean
        1.0
    """
    if [x["item"] for x in before] != [x["item"] for x in after]:
        raise ValueError(f"{len(before)} and {len(after)} texts are not the same ones")
    pairs = [(np.asarray(a["worth"]), np.asarray(b["worth"])) for a, b in zip(before, after)]
    pairs = [p for p in pairs if len(p[0]) >= 4 and all(np.ptp(w) > 0 for w in p)]
    if not pairs:
        raise ValueError(f"of {len(before)} texts none has four words that differ in worth")
    ranks = [spearman(a, b).mean for a, b in pairs]
    return AttributionAgreement(
        texts=len(pairs),
        rank_correlation=Estimate.of(ranks, -1.0, 1.0),
        same_top_word=float(np.mean([a.argmax() == b.argmax() for a, b in pairs])),
    )
