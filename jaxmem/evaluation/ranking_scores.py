"""ndcg: gains of a ranking, discounted, over those of the best (Järvelin and Kekäläinen, 2002)."""

from collections.abc import Mapping, Sequence

import numpy as np


def ndcg(ranking: Sequence[str], gains: Mapping[str, float], k: int = 10) -> float:
    """nDCG of the first `k` of a ranking; `gains` are those of relevant documents, others are 0.

    Raises:
        ValueError: no gain is above 0, or `k` is below 1.

    Example:
        >>> round(ndcg(["a", "b"], {"b": 1.0}), 4)
        0.6309
    """
    if k < 1 or not any(gain > 0 for gain in gains.values()):
        raise ValueError(f"k is {k} and the gains {dict(gains)}, expected >= 1 and one above 0")
    discounts = 1 / np.log2(np.arange(2, k + 2))
    found = [gains.get(name, 0.0) for name in ranking[:k]]
    best = sorted(gains.values(), reverse=True)[:k]
    return float(discounts[: len(found)] @ found) / float(discounts[: len(best)] @ best)


def overlap(ranking: Sequence[str], other: Sequence[str], k: int = 10) -> float:
    """The share of the first `k` of `other` that is among the first `k` of `ranking`.

    Example:
        >>> overlap(["a", "b", "c"], ["a", "c", "d"], k=2)
        0.5
    """
    if not other:
        raise ValueError("the other ranking is empty, expected at least one document")
    return len(set(ranking[:k]) & set(other[:k])) / len(other[:k])
