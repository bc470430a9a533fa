"""calibration_of: whether answers given with probability p are right in a share p of the cases.

ECE is Σ over 10 bins of (share of items) · |accuracy − mean confidence| (Naeini et al., 2015), the
Brier score the mean of Σ (p − 1[right])² (1950). The temperature T > 0 is the one whose
softmax(logprobs / T) has the least mean −log p(right) (Guo et al., 2017).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..core.arguments import takes
from .paired_answers import SCORED, probabilities


@dataclasses.dataclass(frozen=True)
class ConfidenceCalibration:
    """Errors of items, `nll` in nats; the best `temperature` gives `refit_ece`."""

    items: int
    ece: float
    brier: float
    nll: float
    temperature: float
    refit_ece: float


@takes(items=SCORED)
def calibration_of(items: Sequence[Mapping[str, Any]], bins: int = 10) -> ConfidenceCalibration:
    """The calibration of items with `logprobs` of their choices and the `right` number.

    Raises:
        ValueError: there are no items, one has no `logprobs` or `right`, or `bins` is below 1.

    Example:
        >>> items = [{"logprobs": [0.0, -50.0], "right": 0}, {"logprobs": [-50.0, 0.0], "right": 0}]
        >>> found = calibration_of(items)
        >>> found.ece, found.brier
        (0.5, 1.0)
    """
    from scipy.optimize import minimize_scalar  # a dependency of jax

    if bins < 1:
        raise ValueError(f"bins is {bins}, expected at least 1")
    if not items or any(x.get("logprobs") is None or x.get("right") is None for x in items):
        raise ValueError(f"{len(items)} items, expected some, each with logprobs and right")
    logprobs = [np.asarray(x["logprobs"], np.float64) for x in items]
    right = [int(x["right"]) for x in items]

    def nll(log_temperature: float) -> float:
        at = (x / np.exp(log_temperature) for x in logprobs)
        terms = (np.logaddexp.reduce(x) - x[r] for x, r in zip(at, right))
        return float(np.mean(list(terms)))

    best = minimize_scalar(nll, bounds=(np.log(0.05), np.log(100)), method="bounded").x
    p = [probabilities(x) for x in logprobs]
    errors = [((q - (np.arange(len(q)) == r)) ** 2).sum() for q, r in zip(p, right)]
    return ConfidenceCalibration(
        items=len(items),
        ece=expected_error(p, right, bins),
        brier=float(np.mean(errors)),
        nll=nll(0.0),
        temperature=float(np.exp(best)),
        refit_ece=expected_error([probabilities(x / np.exp(best)) for x in logprobs], right, bins),
    )


def expected_error(p: Sequence[np.ndarray], right: Sequence[int], bins: int = 10) -> float:
    """ECE of the choices' probabilities, in bins of equal width of the largest one."""
    top = np.array([q.max() for q in p])
    hit = np.array([q.argmax() == r for q, r in zip(p, right)], np.float64)
    at = np.minimum((top * bins).astype(int), bins - 1)
    gaps = [abs((hit - top)[at == b].sum()) for b in range(bins)]
    return float(sum(gaps)) / len(top)
