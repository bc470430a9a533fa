"""Products with the matrix (n, k) of a weight, which is read some rows at a time.

Each takes one layer `w`, an array or a `Remainder`, and the negative axes that its products sum
over. Results are f32, of full precision.
"""

import functools
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from .fold import Fold, matrix_shape
from .row_slices import scan_rows

LEAST_BLOCKS = 32  # a block in f32 takes at most a 16th of a weight in bfloat16
matmul = functools.partial(jnp.matmul, precision="highest")


def times(w: Any, right: Array, axes: tuple[int, ...]) -> Array:
    """W · right, (n, r), of a matrix (k, r).

    Example:
        >>> times(jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.array([[1.0], [0.0]]), (-2,)).tolist()
        [[1.0], [2.0]]
    """
    write = lambda out, rows, start: lax.dynamic_update_slice_in_dim(
        out, matmul(_matrix(rows, axes), right), start, 0
    )
    zeros = jnp.zeros((matrix_shape(w, axes)[0], right.shape[1]))
    return scan_rows(write, zeros, w, axes, LEAST_BLOCKS)


def transposed_times(w: Any, left: Array, axes: tuple[int, ...]) -> Array:
    """Wᵀ · left, (k, r), of a matrix (n, r).

    Example:
        >>> w, left = jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.array([[1.0], [0.0]])
        >>> transposed_times(w, left, (-2,)).tolist()
        [[1.0], [3.0]]
    """

    def add(total, rows, start):
        rows = _matrix(rows, axes)
        part = lax.dynamic_slice_in_dim(left, start, len(rows), 0)
        return total + matmul(rows.T, part)

    zeros = jnp.zeros((matrix_shape(w, axes)[1], left.shape[1]))
    return scan_rows(add, zeros, w, axes, LEAST_BLOCKS)


def gram_of_columns(w: Any, axes: tuple[int, ...], root: Array | None = None) -> Array:
    """(W S)ᵀ (W S), (k, k), of a matrix S = `root` (k, k); without it of W.

    Example:
        >>> gram_of_columns(jnp.array([[1.0, 2.0], [3.0, 4.0]]), (-2,)).tolist()
        [[5.0, 11.0], [11.0, 25.0]]
    """

    def add(total, rows, _):
        rows = _matrix(rows, axes)
        rows = rows if root is None else matmul(rows, root)
        return total + matmul(rows.T, rows)

    k = matrix_shape(w, axes)[1]
    return scan_rows(add, jnp.zeros((k, k)), w, axes, LEAST_BLOCKS)


def gram_of_rows(w: Any, axes: tuple[int, ...], root: Array | None = None) -> Array:
    """(W S) (W S)ᵀ, (n, n), of a matrix S = `root` (k, k); without it of W.

    Example:
        >>> gram_of_rows(jnp.array([[1.0, 2.0], [3.0, 4.0]]), (-2,)).tolist()
        [[10.0, 14.0], [14.0, 20.0]]
    """

    def write(total, rows, start):
        rows = _matrix(rows, axes)
        rows = rows if root is None else matmul(matmul(rows, root), root.T)
        return lax.dynamic_update_slice_in_dim(total, times(w, rows.T, axes), start, 1)

    n = matrix_shape(w, axes)[0]
    return scan_rows(write, jnp.zeros((n, n)), w, axes, LEAST_BLOCKS)


def _matrix(rows: Array, axes: tuple[int, ...]) -> Array:
    """Some rows of a weight as a matrix (rows, k) in f32."""
    return Fold.from_weight(rows, axes)[0].astype(jnp.float32)
