"""Permuted: a weight whose inputs are encoded in another order, which costs two bytes an input."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..core.matrix_leaf import MatrixLeafWrapper


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PermutedArray(MatrixLeafWrapper):
    """Column i of the matrix that `inner` holds multiplies input order[i].

    A product reorders its few inputs and leaves the weight as it lies. `jm.Permute` makes it.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> inner = jm.NM(2, 3).encode(jnp.array([[1.0, 2.0, 3.0]]), (-1,))
        >>> PermutedArray(inner, jnp.array([2, 0, 1], jnp.uint8)).decode().tolist()
        [[2.0, 3.0, 0.0]]
    """

    inner: Any
    order: Array  # (*stack, k) uint8 or uint16

    def rows(self):
        return self._turned(self.inner.rows())

    def slice_rows(self, start, size):
        return dataclasses.replace(self, inner=self.inner.slice_rows(start, size))

    def take_rows(self, index):
        return self._turned(self.inner.take_rows(index))

    def matmul(self, x, precision=None):
        # apart from the product: fused into it, jax 0.12 on a CPU finds no bf16 x bf16 -> f32
        return self.inner.matmul(lax.optimization_barrier(x[:, self.order]), precision)

    def map(self, fn):
        return dataclasses.replace(self, inner=self.inner.map(fn))

    def shard_matrix(self, fold, side, parts):
        if side == "summed":  # runs of inputs lie all over the columns
            return NotImplemented
        return super().shard_matrix(fold, side, parts)

    def _turned(self, rows):
        place = jnp.argsort(self.order, axis=-1)
        place = place.reshape(*place.shape[:-1], *(1,) * (rows.ndim - place.ndim), -1)
        return jnp.take_along_axis(rows, place, -1)
