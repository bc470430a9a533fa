"""Estimate: a measured mean with its 95 % confidence interval.

Intervals of means are mean ± t · s/√n (Student, 1908), and intervals of rank correlations
tanh(arctanh ρ ± 1.96 √((1 + ρ²/2) / (n − 3))) (Bonett and Wright, 2000).
"""

import dataclasses
import math
from typing import Any, Self

import numpy as np


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean and the ends of its 95 % confidence interval; one sample gives no interval (None).

    Example:
        >>> print(Estimate.of([1.0, 2.0, 3.0]))
        2  [-0.48414, 4.4841]
    """

    mean: float
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, samples: Any, least: float = -math.inf, most: float = math.inf) -> Self:
        """The mean of independent samples; possible values lie between `least` and `most`."""
        from scipy.special import stdtrit  # a dependency of jax

        x = np.asarray(samples, np.float64)
        mean, n = float(x.mean()), len(x)
        if n < 2:
            return cls(mean)
        half = float(stdtrit(n - 1, 0.975) * x.std(ddof=1) / math.sqrt(n))
        return cls(mean, max(mean - half, least), min(mean + half, most))

    def exp(self) -> Self:
        """exp of the mean and of both ends: a perplexity from a mean negative log-likelihood."""
        with np.errstate(over="ignore"):
            values = (self.mean, self.low, self.high)
            return type(self)(*(v if v is None else float(np.exp(v)) for v in values))

    def __str__(self) -> str:
        ends = "" if self.low is None else f"  [{self.low:.5g}, {self.high:.5g}]"
        return f"{self.mean:.5g}{ends}"


def spearman(x: Any, y: Any) -> Estimate:
    """Rank correlation of pairs; tied values share the mean of their ranks (Spearman, 1904).

    Raises:
        ValueError: there are fewer than four pairs, `x` and `y` differ in length, or all values of
            one are equal.

    Example:
        >>> print(spearman([1, 2, 3, 4], [10, 20, 20, 40]))
        0.94868  [-0.49425, 0.99953]
    """
    x, y = np.asarray(x), np.asarray(y)
    if x.shape != y.shape or x.ndim != 1 or x.size < 4:
        raise ValueError(f"the sides have shapes {x.shape} and {y.shape}, expected >= 4 pairs")
    a, b = _ranks(x), _ranks(y)
    spread = math.sqrt((a @ a) * (b @ b))
    if spread == 0:
        raise ValueError("the values of one side are all equal, expected an order")
    rho = float(a @ b) / spread
    if abs(rho) > 1 - 1e-12:
        return Estimate(rho, rho, rho)
    half = 1.959964 * math.sqrt((1 + rho**2 / 2) / (x.size - 3))
    return Estimate(rho, math.tanh(math.atanh(rho) - half), math.tanh(math.atanh(rho) + half))


def _ranks(x: np.ndarray) -> np.ndarray:
    """The rank of each value, minus the mean rank."""
    _, position, counts = np.unique(x, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[position] - (x.size + 1) / 2
