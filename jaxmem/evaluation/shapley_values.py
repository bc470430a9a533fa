"""kernel_shap: Shapley values by a weighted least squares fit (Lundberg and Lee, 2017).

φ minimises Σ_S w(|S|) (v(S) − v(∅) − Σ_{i∈S} φ_i)² with Σ φ = v(all) − v(∅), where
w(s) = (n − 1) / (C(n, s) s (n − s)). Coalitions that are drawn come with their complements (Covert
and Lee, 2021).
"""

import itertools
from collections.abc import Callable

import numpy as np

from ..core.arguments import FUNCTION, takes


@takes(value=FUNCTION)
def kernel_shap(
    value: Callable[[np.ndarray], np.ndarray], n: int, *, samples: int = 128, seed: int = 0
) -> np.ndarray:
    """What each of `n` players adds to a game, (n,); the sum is value(all) − value(none).

    `value` maps coalitions (m, n) of bools to (m,) numbers. Where there are no more than `samples`
    coalitions beside the empty and the whole one, all are asked and the values are exact.

    Raises:
        ValueError: `n` or `samples` is below 1.

    Example:
        >>> both = lambda chosen: (chosen[:, 0] & chosen[:, 1]) * 6.0
        >>> kernel_shap(both, 3).round(6).tolist()
        [3.0, 3.0, 0.0]
    """
    if n < 1 or samples < 1:
        raise ValueError(f"n is {n} and samples {samples}, expected at least 1")
    ends = np.array([[False] * n, [True] * n])
    if n == 1:
        none, whole = np.asarray(value(ends), np.float64)
        return np.array([whole - none])
    chosen, weights = _coalitions(n, samples, np.random.default_rng(seed))
    none, whole, *values = np.asarray(value(np.concatenate([ends, chosen])), np.float64)
    # The last value is what the others leave of the sum.
    x = chosen.astype(np.float64)
    design = (x[:, :-1] - x[:, -1:]) * np.sqrt(weights)[:, None]
    wanted = (np.array(values) - none - x[:, -1] * (whole - none)) * np.sqrt(weights)
    first = np.linalg.lstsq(design, wanted, rcond=None)[0]
    return np.append(first, whole - none - first.sum())


def _coalitions(n: int, samples: int, draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(coalitions (m, n), their weights): all of them, or as many as `samples` at random."""
    sizes = np.arange(1, n)
    by_size = (n - 1) / (sizes * (n - sizes))  # of all coalitions of a size together
    if n < 31 and 2**n - 2 <= samples:
        every = np.array(list(itertools.product((False, True), repeat=n))[1:-1])
        count = every.sum(1)
        return every, by_size[count - 1] / np.bincount(count)[count]
    drawn = draw.choice(sizes, (samples + 1) // 2, p=by_size / by_size.sum())
    half = np.stack([draw.permutation(n) < size for size in drawn])
    return np.concatenate([half, ~half])[:samples], np.ones(samples)
