"""Refit: the best values for given kept positions, min (v − w)ᵀ H (v − w), by PCG.

PCG is the preconditioned conjugate gradient method.
"""

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..calibration.statistics import Moments
from ..codecs.sparse import SparseArray
from ..core.arguments import check_fields
from ..core.codec import CODEC
from ..core.fold import Fold, matrix_shape
from .solver import Solver


@dataclasses.dataclass(frozen=True)
class Refit(Solver):
    """Encodes with a sparse codec or a solver of one, then refits the values that are kept.

    The codec chooses which weights are kept (the support). For each output channel, the values
    solve the normal equations of the damped Gram matrix on that support. That is the least error
    possible there, and never more than before. All rows take `steps` of conjugate gradients at
    once, from the codec's values, with H's diagonal as preconditioner. Meng et al., 2024 (ALPS).

    Raises:
        TypeError: the values of `codec` are not floats.
        ValueError: `steps` is below 1; there are no stats, or only their diagonal.

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
    damping: float = 0.01  # added to the diagonal of the Gram matrix, times its mean
    calibrated: ClassVar[bool] = True
    sequential: ClassVar[bool] = True

    def __post_init__(self):
        check_fields(self, codec=CODEC)
        if self.steps < 1:
            raise ValueError(f"Refit takes at least 1 step, got {self.steps}")
        if not self.damping >= 0:
            raise ValueError(f"Refit takes a damping of at least 0, got {self.damping}")

    def solve(self, matrix: Array, fold: Fold, dtype: Any, stats: Moments | None) -> Any:
        return self.row_solver(matrix, (-1,), stats)(matrix, fold, dtype)

    def row_solver(self, w, axes, stats):
        """`solve` of some rows, given what the solver inside computes of the stats."""
        gram = jnp.eye(matrix_shape(w, axes)[-1]) if stats is None else stats.second
        if gram.ndim == 1:
            raise ValueError('Refit wants stats of moments="gram", got their diagonal')
        if isinstance(self.codec, Solver):
            inner = self.codec.row_solver(w, axes, stats)
        else:
            inner = lambda rows, fold, dtype: self.codec.encode(rows.astype(dtype), (-1,), stats)
        return functools.partial(self._solve, inner=inner, gram=gram)

    def _solve(self, matrix, fold, dtype, inner, gram):
        """The leaf of rows (n, k) in f32; `inner` chooses which weights are kept."""
        leaf = inner(matrix, fold, dtype)
        if not isinstance(leaf, SparseArray) or not isinstance(leaf.values, Array):
            raise TypeError(f"Refit takes a sparse codec of float values, got {self.codec}")
        mask = support(leaf)
        fitted = fit_values(matrix, gram, mask, leaf.rows(), self.steps, self.damping)
        return replace_values(leaf, fitted)


def support(leaf: SparseArray) -> Array:
    """The mask (n, k) of the weights that an unstacked leaf keeps, also those that are zero."""
    return dataclasses.replace(leaf, values=jnp.ones_like(leaf.values)).rows() > 0


def replace_values(leaf: SparseArray, matrix: Array) -> SparseArray:
    """The leaf with the values of a matrix (n, k) at the positions that it keeps."""
    spread = lambda values: dataclasses.replace(leaf, values=values).rows()
    # `spread` is linear, and its transpose gathers
    (values,) = jax.vjp(spread, leaf.values)[1](matrix)
    return dataclasses.replace(leaf, values=values)


def fit_values(
    matrix: Array, gram: Array, mask: Array, start: Array, steps: int, damping: float = 0.01
) -> Array:
    """The rows v (n, k), zero outside the mask, that minimise (v − w)ᵀ (H + λI) (v − w), in f32.

    Args:
        matrix: the rows w (n, k).
        gram: H = E[x xᵀ] (k, k).
        mask: (n, k), True where v may differ from zero.
        start: the first v (n, k).
        steps: of conjugate gradients.
        damping: λ relative to the mean diagonal of H.

    Example:
        >>> import jax.numpy as jnp
        >>> gram = jnp.array([[1.0, 0.9], [0.9, 1.0]])
        >>> mask = jnp.array([[False, True]])
        >>> v = fit_values(jnp.ones((1, 2)), gram, mask, jnp.zeros((1, 2)), 2, 0.0)
        >>> [round(float(x), 3) for x in v[0]]
        [0.0, 1.9]
    """
    k = gram.shape[0]
    mean = jnp.trace(gram) / max(k, 1)
    gram = gram + jnp.eye(k) * jnp.where(mean > 0, damping * mean, 1.0)
    times_gram = lambda rows: jnp.where(mask, jnp.matmul(rows, gram, precision="highest"), 0.0)
    diagonal = jnp.diagonal(gram)[None]
    dot = lambda a, b: (a * b).sum(-1, keepdims=True)
    divide = lambda a, b: a / jnp.where(b > 0, b, 1.0)
    residual = times_gram(matrix - start)
    preconditioned = residual / diagonal

    def step(_, state):
        rows, residual, direction, size = state
        product = times_gram(direction)
        length = jnp.where(size > solved, divide(size, dot(direction, product)), 0.0)
        rows, residual = rows + length * direction, residual - length * product
        preconditioned = residual / diagonal
        new_size = dot(residual, preconditioned)
        direction = preconditioned + divide(new_size, size) * direction
        return rows, residual, direction, new_size

    size = dot(residual, preconditioned)
    solved = size * jnp.finfo(size.dtype).eps ** 2  # further steps would follow rounding errors
    return lax.fori_loop(0, steps, step, (start, residual, preconditioned, size))[0]
