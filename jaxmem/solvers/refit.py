"""Refit: the kept values that lose least, min (v − w)ᵀ H (v − w) on a fixed support, by PCG."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..calibration.statistics import Moments
from ..codecs.sparse import SparseArray
from ..core.fold import Fold
from .solver import Solver


@dataclasses.dataclass(frozen=True)
class Refit(Solver):
    """Encodes by a sparse codec or a solver of one, then fits the values it keeps.

    Which weights stay is the codec's choice. Their values solve, for each output channel, the
    normal equations of the damped Gram matrix on its support: the least error that support allows,
    and never more than before. `steps` of conjugate gradients with H's diagonal as preconditioner,
    from the codec's values, for all rows at once. Meng et al., 2024 (ALPS).

    Raises:
        TypeError: a codec whose values are not floats.
        ValueError: no stats, or only their diagonal.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmem as jm
        >>> draw = lambda *shape: jax.random.normal(jax.random.key(sum(shape)), shape)
        >>> w, x = draw(16, 8), draw(99, 16) @ draw(16, 16)
        >>> fed = jm.stats(lambda p, x: x @ p["w"], {"w": w}, [(x,)])["w"]
        >>> loss = lambda wrong: float(((x @ wrong) ** 2).sum())
        >>> error = lambda codec: loss(codec.encode(w, stats=fed).decode() - w)
        >>> error(Refit(jm.SparseGPT(jm.NM(2, 4)))) < 0.9 * error(jm.SparseGPT(jm.NM(2, 4)))
        True
    """

    steps: int = 32
    damping: float = 0.01  # of the mean diagonal
    calibrated: ClassVar[bool] = True

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"Refit takes at least 1 step, got {self.steps}")

    def solve(self, matrix: Array, fold: Fold, dtype: Any, stats: Moments | None) -> Any:
        gram = jnp.eye(fold.k) if stats is None else stats.second
        if gram.ndim == 1:
            raise ValueError('Refit wants stats of moments="gram", got their diagonal')
        if isinstance(self.codec, Solver):
            leaf = self.codec.solve(matrix, fold, dtype, stats)
        else:
            leaf = self.codec.encode(matrix.astype(dtype), (-1,), stats)
        if not isinstance(leaf, SparseArray) or not isinstance(leaf.values, Array):
            raise TypeError(f"Refit takes a sparse codec of float values, got {self.codec}")
        mask = support(leaf)
        fitted = fit(matrix, gram, mask, leaf.rows(), self.steps, self.damping)
        return refilled(leaf, fitted)


def support(leaf: SparseArray) -> Array:
    """Where the weights that an unstacked leaf keeps are, (n, k), be they zero or not."""
    return dataclasses.replace(leaf, values=jnp.ones_like(leaf.values)).rows() > 0


def refilled(leaf: SparseArray, matrix: Array) -> SparseArray:
    """The leaf with the values that a matrix (n, k) has at its places."""
    spread = lambda values: dataclasses.replace(leaf, values=values).rows()
    (values,) = jax.vjp(spread, leaf.values)[1](matrix)  # linear: the transpose gathers
    return dataclasses.replace(leaf, values=values)


def fit(
    matrix: Array, gram: Array, mask: Array, start: Array, steps: int, damping: float = 0.01
) -> Array:
    """The rows v (n, k), zero off the mask, that minimise (v − w)ᵀ (H + λI) (v − w).

    `matrix` holds w and `start` the rows to begin with; λ = damping · mean diagonal. In f32.

    Example:
        >>> import jax.numpy as jnp
        >>> gram = jnp.array([[1.0, 0.9], [0.9, 1.0]])
        >>> mask = jnp.array([[False, True]])
        >>> v = fit(jnp.ones((1, 2)), gram, mask, jnp.zeros((1, 2)), 2, 0.0)
        >>> [round(float(x), 3) for x in v[0]]
        [0.0, 1.9]
    """
    k = gram.shape[0]
    mean = jnp.trace(gram) / max(k, 1)
    gram = gram + jnp.eye(k) * jnp.where(mean > 0, damping * mean, 1.0)
    by_gram = lambda rows: jnp.where(mask, jnp.matmul(rows, gram, precision="highest"), 0.0)
    diagonal = jnp.diagonal(gram)[None]
    dot = lambda a, b: (a * b).sum(-1, keepdims=True)
    share = lambda a, b: a / jnp.where(b > 0, b, 1.0)
    residual = by_gram(matrix - start)
    ahead = residual / diagonal

    def step(_, state):
        rows, residual, direction, size = state
        product = by_gram(direction)
        along = share(size, dot(direction, product))
        rows, residual = rows + along * direction, residual - along * product
        ahead = residual / diagonal
        new = dot(residual, ahead)
        return rows, residual, ahead + share(new, size) * direction, new

    return lax.fori_loop(0, steps, step, (start, residual, ahead, dot(residual, ahead)))[0]
