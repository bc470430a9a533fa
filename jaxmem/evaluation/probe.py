"""Probe: a logistic regression on vectors of texts, fitted once and held fixed (Alain, 2016).

It minimises mean −log p(label) + ½ · l2 · ‖W‖² by L-BFGS.
"""

import dataclasses
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Probe:
    """`weights` (d + 1, classes): the last row is the bias; `labels` name the classes."""

    weights: np.ndarray
    labels: tuple[Any, ...]

    @classmethod
    def fit(cls, vectors: np.ndarray, labels: list[Any], *, l2: float = 1e-3) -> Self:
        """The probe of vectors (n, d) with their labels.

        Raises:
            ValueError: there is one class only, or not as many labels as vectors.

        Example:
            >>> x = np.array([[1.0], [2.0], [-1.0], [-2.0]])
            >>> Probe.fit(x, ["up", "up", "down", "down"]).logprobs(x).argmax(1).tolist()
            [1, 1, 0, 0]
        """
        from scipy.optimize import minimize  # a dependency of jax

        if len(vectors) != len(labels):
            raise ValueError(f"{len(vectors)} vectors have {len(labels)} labels")
        classes = tuple(sorted(set(labels)))
        if len(classes) < 2:
            raise ValueError(f"the labels are all {labels[:1]}, expected two classes or more")
        x = _with_one(vectors)
        wanted = np.array([classes.index(label) for label in labels])

        @jax.jit
        @jax.value_and_grad
        def loss(flat):
            w = flat.reshape(x.shape[1], len(classes))
            logits = jnp.matmul(x, w, precision="highest")
            chosen = jax.nn.log_softmax(logits)[np.arange(len(x)), wanted]
            return -chosen.mean() + l2 / 2 * (w[:-1] ** 2).sum()

        start = np.zeros(x.shape[1] * len(classes), np.float32)
        as_double = lambda flat: [np.asarray(v, np.float64) for v in loss(flat.astype(np.float32))]
        found = minimize(as_double, start, jac=True, method="L-BFGS-B").x
        return cls(found.reshape(x.shape[1], -1).astype(np.float32), classes)

    def logprobs(self, vectors: np.ndarray) -> np.ndarray:
        """Log-probabilities (n, classes) of vectors (n, d), in float64.

        Raises:
            ValueError: the vectors are of another size than those that it was fitted on.
        """
        width = len(self.weights) - 1
        if np.shape(vectors)[1] != width:
            raise ValueError(
                f"vectors have {np.shape(vectors)[1]} numbers, the probe wants {width}"
            )
        logits = _with_one(vectors).astype(np.float64) @ self.weights
        top = logits.max(1, keepdims=True)
        return logits - top - np.log(np.exp(logits - top).sum(1, keepdims=True))


def _with_one(vectors: np.ndarray) -> np.ndarray:
    vectors = np.asarray(vectors, np.float32)
    return np.concatenate([vectors, np.ones((len(vectors), 1), np.float32)], axis=1)
