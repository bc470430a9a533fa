"""kl_by_position: the mean KL divergence of tokens, by how much text stands before them."""

import numpy as np

from .confidence import Estimate


def kl_by_position(kl: np.ndarray, window: int) -> dict[str, Estimate]:
    """{"first-last": mean in nats} of positions 1, 2-3, 4-7, ... in the windows of a text.

    `kl` (windows * (window - 1),) has the tokens of each window but its first; the position of a
    token is the number of tokens before it in its window. The samples of a mean are windows.

    Raises:
        ValueError: `kl` is not of whole windows.

    Example:
        >>> found = kl_by_position(np.array([3.0, 1.0, 2.0, 5.0, 1.0, 0.0]), window=4)
        >>> {name: mean.mean for name, mean in found.items()}
        {'1': 4.0, '2-3': 1.0}
    """
    if window < 2 or not len(kl) or len(kl) % (window - 1):
        raise ValueError(f"{len(kl)} tokens are no whole windows of {window}")
    rows, found, first = np.asarray(kl).reshape(-1, window - 1), {}, 1
    while first < window:
        last = min(2 * first, window) - 1
        name = f"{first}-{last}" if last > first else str(first)
        found[name] = Estimate.of(rows[:, first - 1 : last].mean(axis=1), 0.0)
        first = last + 1
    return found
