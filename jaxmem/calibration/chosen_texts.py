"""choose_texts: the few texts that calibrate as well as many, without labels.

By log-determinant of second moments, greedily: each text adds most to log det(ε I + Σ E[x xᵀ]) of
what a weight is fed (D-optimal design; greedy is within 1 − 1/e of the best: Nemhauser et al.,
1978). Or by disagreement: those on which a coarse model is farthest from the dense one.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..core.arguments import Kind, takes

_RIDGE = 1e-3  # ε over the mean of the moments' diagonals
_FUNCTION = Kind("a function, or None", lambda x: x is None or callable(x))
_TEXTS = Kind(
    "a sequence of texts",
    lambda x: hasattr(x, "__getitem__") and not isinstance(x, str | bytes | Mapping),
)


@takes(texts=_TEXTS, moments=_FUNCTION, disagreement=_FUNCTION)
def choose_texts(
    texts: Sequence[Any],
    n: int,
    *,
    moments: Callable[[Any], Any] | None = None,
    disagreement: Callable[[Any], float] | None = None,
) -> list[int]:
    """The numbers of `n` texts, the first chosen first; each function is called once for a text.

    Args:
        texts: windows of token ids, sentences, or anything else that the function takes.
        n: how many are chosen.
        moments: maps a text to E[x xᵀ] (..., k, k) of the inputs of a weight or of several of one
            size, such as `jax.jit(lambda text: jm.stats(fn, params, [(text,)])[path].second)`.
        disagreement: maps a text to a number, such as the KL of a coarsely rounded model to the
            dense one; the largest are taken.

    Raises:
        ValueError: not one of the two functions is given; there are fewer than `n` texts, or `n` is
            below 1; moments are not square, or a number is not finite.

    Example:
        >>> import jax.numpy as jnp
        >>> texts = [jnp.array([[1.0, 0.0]]), jnp.array([[1.1, 0.0]]), jnp.array([[0.0, 0.5]])]
        >>> choose_texts(texts, 2, moments=lambda x: x.T @ x)
        [1, 2]
        >>> choose_texts(texts, 1, disagreement=lambda x: float(x.sum()))
        [1]
    """
    if (moments is None) == (disagreement is None):
        raise ValueError("expected either moments or disagreement to choose texts by")
    if not 1 <= n <= len(texts):
        raise ValueError(f"n is {n} of {len(texts)} texts, expected 1 to {len(texts)}")
    if disagreement is not None:
        scores = np.array([disagreement(text) for text in texts], np.float64)
        _check_finite(scores)
        return [int(i) for i in np.argsort(-scores, kind="stable")[:n]]
    grams = np.stack([_grams(moments(text)) for text in texts])  # (texts, weights, k, k)
    _check_finite(grams)
    k = grams.shape[-1]
    diagonals = np.einsum("twkk->w", grams) / (len(texts) * k)
    total = _RIDGE * np.maximum(diagonals, 1e-30)[:, None, None] * np.eye(k)
    chosen: list[int] = []
    while len(chosen) < n:
        gains = np.full(len(texts), -np.inf)
        for i in set(range(len(texts))) - set(chosen):
            gains[i] = np.linalg.slogdet(total + grams[i])[1].sum()
        chosen.append(int(gains.argmax()))
        total = total + grams[chosen[-1]]
    return chosen


def _grams(second: Any) -> np.ndarray:
    """The moments of one text, (weights, k, k), in float64."""
    second = np.asarray(second, np.float64)
    if second.ndim < 2 or second.shape[-1] != second.shape[-2]:
        raise ValueError(f"moments are of shape {second.shape}, expected (..., k, k)")
    return second.reshape(-1, *second.shape[-2:])


def _check_finite(numbers: np.ndarray) -> None:
    if not np.isfinite(numbers).all():
        wrong = int(np.isfinite(numbers.reshape(len(numbers), -1)).all(1).argmin())
        raise ValueError(f"what text {wrong} gives is not finite")
