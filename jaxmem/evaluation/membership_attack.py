"""membership: how well a model's losses tell texts it was trained on from others (Yeom, 2018).

AUC is P(loss of a seen text < loss of an unseen one), ties counted half (Mann and Whitney, 1947).
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from ..core.arguments import ROW_OF_NUMBERS, takes
from .confidence import Estimate


@dataclasses.dataclass(frozen=True)
class Membership:
    """`auc` is ½ for a model that betrays nothing, with its 95 % interval; shares from 0 to 1.

    `true_positives` is the share of `seen` texts that are found while at most `false_positives`
    of the `unseen` ones are taken for seen (Carlini et al., 2022).
    """

    auc: Estimate
    true_positives: float
    false_positives: float
    seen: int
    unseen: int


@takes(seen=ROW_OF_NUMBERS, unseen=ROW_OF_NUMBERS)
def membership(
    seen: Sequence[float], unseen: Sequence[float], *, false_positives: float = 0.01
) -> Membership:
    """The attack by the loss: a text is taken for seen if its loss, in nats, is low.

    Below 100 unseen texts, no false positive is allowed at 1 %. The interval of the AUC is that of
    Hanley and McNeil (1982).

    Raises:
        ValueError: one side has no losses, or one that is not finite; `false_positives` is not from
            0 to 1.

    Example:
        >>> found = membership([1.0, 2.0, 2.5], [2.0, 3.0])
        >>> print(found.auc.mean, round(found.true_positives, 2))
        0.75 0.33
    """
    if not 0 <= false_positives <= 1:
        raise ValueError(f"false_positives is {false_positives}, expected 0 to 1")
    losses = []
    for name, values in (("seen", seen), ("unseen", unseen)):
        x = np.asarray(values, np.float64)
        if x.ndim != 1 or not x.size or not np.isfinite(x).all():
            raise ValueError(f"the losses of {name} texts are {values!r}, expected finite numbers")
        losses.append(np.sort(x))
    inside, outside = losses
    above = len(outside) - np.searchsorted(outside, inside, side="right")
    ties = np.searchsorted(outside, inside, side="right") - np.searchsorted(outside, inside)
    auc = float((above + ties / 2).mean() / len(outside))
    allowed = int(false_positives * len(outside))
    # A text is taken for seen if its loss is below the first that may not be.
    border = outside[allowed] if allowed < len(outside) else np.inf
    return Membership(
        auc=_interval(auc, len(inside), len(outside)),
        true_positives=float((inside < border).mean()),
        false_positives=float((outside < border).mean()),
        seen=len(inside),
        unseen=len(outside),
    )


def _interval(auc: float, n: int, m: int) -> Estimate:
    """The AUC of n against m texts with its 95 % interval; none of a single text."""
    if min(n, m) < 2:
        return Estimate(auc)
    both, square = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = auc * (1 - auc) + (n - 1) * (both - auc**2) + (m - 1) * (square - auc**2)
    half = 1.959964 * max(variance / (n * m), 0.0) ** 0.5
    return Estimate(auc, max(auc - half, 0.0), min(auc + half, 1.0))
