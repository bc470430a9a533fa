"""Permuted: a weight whose inputs are stored in another order, at two bytes an input."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..core.matrix_leaf import MatrixLeafWrapper


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PermutedArray(MatrixLeafWrapper):
    """Column i of the matrix of `inner` multiplies input order[i].

    A product reorders its few inputs and reads the weight as it is stored. The codec is
    `jm.Permute`.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> inner = jm.NM(2, 3).encode(jnp.array([[1.0, 2.0, 3.0]]), (-1,))
        >>> PermutedArray(inner, jnp.array([2, 0, 1], jnp.uint8)).decode().tolist()
        [[2.0, 3.0, 0.0]]
    """

    inner: Any
    order: Array  # (*stack, k) uint8 or uint16

    def rows(self):
        return self._reordered(self.inner.rows())

    def slice_rows(self, start, size):
        return dataclasses.replace(self, inner=self.inner.slice_rows(start, size))

    def take_rows(self, index):
        return self._reordered(self.inner.take_rows(index))

    def matmul(self, x, precision=None):
        # The barrier keeps the reordering out of the product: jax 0.12 on a CPU has no fused
        # product of bf16 x bf16 -> f32.
        return self.inner.matmul(lax.optimization_barrier(x[:, self.order]), precision)

    def map(self, fn):
        return dataclasses.replace(self, inner=self.inner.map(fn))

    def shard_matrix(self, fold, side, parts):
        if side == "summed":  # the inputs of a shard are in columns all over the matrix
            return NotImplemented
        return super().shard_matrix(fold, side, parts)

    def _reordered(self, rows):
        """The rows (*stack, ..., k) with their columns in the order of the inputs."""
        place = jnp.argsort(self.order, axis=-1)
        place = place.reshape(*place.shape[:-1], *(1,) * (rows.ndim - place.ndim), place.shape[-1])
        return jnp.take_along_axis(rows, place, -1)
