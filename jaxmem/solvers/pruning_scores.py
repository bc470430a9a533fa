"""Scores: how important each weight of a matrix (n, k) is; pruners keep the highest.

A score is a function of the matrix (n, k) in f32 and of the stats that `encode` is given for the
weight, and returns (n, k).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ..calibration.statistics import Moments


def magnitude(matrix: Array, stats: Moments | None = None) -> Array:
    """The magnitude |w|. Han et al., 2015.

    Example:
        >>> import jax.numpy as jnp
        >>> magnitude(jnp.array([[-2.0, 1.0]])).tolist()
        [[2.0, 1.0]]
    """
    return jnp.abs(matrix)


def wanda(matrix: Array, stats: Moments | None) -> Array:
    """|w| · √E[x²], where x is the input that w multiplies. Sun et al., 2023.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> fed = jm.Moments(jnp.array([1.0, 9.0]), jnp.zeros(2), jnp.zeros(2), jnp.ones(()))
        >>> wanda(jnp.array([[-2.0, 1.0]]), fed).tolist()
        [[2.0, 3.0]]
    """
    return jnp.abs(matrix) * jnp.sqrt(_energy(matrix, stats))[None]


def ria(matrix: Array, stats: Moments | None, columns: Array | None = None) -> Array:
    """(|w| / Σ|w| of its row + |w| / Σ|w| of its column) · E[x²]^¼. Zhang et al., 2024.

    `columns` (k,) is Σ|w| of each column where `matrix` has some of its rows only.

    Example:
        >>> import jax.numpy as jnp
        >>> ria(jnp.array([[1.0, 3.0], [1.0, 1.0]]), None).tolist()
        [[0.75, 1.5], [1.0, 0.75]]
    """
    size = jnp.abs(matrix)
    columns = size.sum(0) if columns is None else columns
    share = lambda total: size / jnp.maximum(total, 1e-30)
    shares = share(columns[None]) + share(size.sum(1, keepdims=True))
    return shares * (_energy(matrix, stats) ** 0.25)[None]


def taylor(matrix: Array, gradient: Array | None) -> Array:
    """|w · ∂loss/∂w|, the first-order change of the loss without w. Molchanov et al., 2016.

    The stats of the weight are its gradient as a matrix (n, k), of `jm.gradients`.

    Example:
        >>> import jax.numpy as jnp
        >>> taylor(jnp.array([[-2.0, 1.0]]), jnp.array([[0.5, -3.0]])).tolist()
        [[1.0, 3.0]]
    """
    return jnp.abs(matrix if gradient is None else matrix * gradient)


def random(seed: int) -> Callable[[Array, Any], Array]:
    """A random score: the baseline that every other score should beat.

    Example:
        >>> import jax.numpy as jnp
        >>> random(0)(jnp.ones((2, 3))).shape
        (2, 3)
    """
    key = jax.random.key(seed)
    return lambda matrix, stats=None: jax.random.uniform(key, matrix.shape)


SCORES_OF_A_ROW = (magnitude, wanda)  # do not depend on other rows


def _energy(matrix: Array, stats: Moments | None) -> Array:
    """E[x²] (k,); ones without stats, as when only shapes are needed."""
    return jnp.ones(matrix.shape[1]) if stats is None else stats.diag
