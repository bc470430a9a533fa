"""Csr: the kept weights of each row beside their columns: for weights that are nearly all zero."""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..core.leaf import divided_shape
from ..kernels.tiled_matmul import decoded_product, map_tiles
from .sparse import (
    Count,
    Sparse,
    SparseArray,
    checked_density,
    compressed,
    highest,
    index_dtype,
    kept_count,
    kept_of,
    narrow_values,
    pick_values,
    value_rows,
)


@dataclasses.dataclass(frozen=True)
class Csr(Sparse):
    """Keeps round(density · k) of the k weights of each output channel and their indices.

    An index takes a byte up to 256 inputs and two up to 65,536. Rows keep as many, so no row
    pointers are stored. A product of a few rows of x gathers what the kept weights read: on a CPU
    that beats dense below a density of 1/5. Saad, 2003, section 3.4.

    Raises:
        ValueError: a density that is not between 0 and 1, or keeps none or all of k weights.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> leaf = Csr(1 / 64).encode(jnp.arange(256.0).reshape(64, 4))
        >>> jm.nbytes(leaf), leaf.decode()[-1].tolist()  # 4 of 4 + 1 bytes
        (20, [252.0, 253.0, 254.0, 255.0])
    """

    density: float = 0.05
    independent_rows: ClassVar[bool] = True

    def __post_init__(self):
        checked_density(self.density, "Csr")

    def mask(self, scores, count: Count = kept_of):
        k = scores.shape[-1]
        return highest(scores, count(k, self._count(k)))

    def hold(self, matrix, mask, fold, dtype):
        values, columns = compressed(matrix, mask, self._count(fold.k))
        columns = columns.astype(index_dtype(fold.k))
        return CsrArray(values.astype(dtype), fold, jnp.dtype(dtype), columns)

    def _count(self, k):
        return kept_count(self.density, k, "weights of each row")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CsrArray(SparseArray):
    """Values and columns (*stack, n, kept), the columns rising."""

    columns: Array  # uint8, uint16 or uint32

    def rows(self):
        return self._dense(value_rows(self.values), self.columns)

    def _dense(self, values, columns):
        zeros = jnp.zeros((*columns.shape[:-1], self.fold.k), jnp.float32)
        return jnp.put_along_axis(zeros, columns.astype(jnp.int32), values, -1, inplace=False)

    def slice_rows(self, start, size):
        columns = lax.dynamic_slice_in_dim(self.columns, start, size, 0)
        values = narrow_values(self.values, start, size)
        return dataclasses.replace(self, values=values, columns=columns)

    def shard_matrix(self, fold, side, parts):
        if side == "summed":  # runs of columns keep different numbers of weights
            return NotImplemented
        return self.cut_rows(fold, parts, columns=divided_shape(self.columns, -2, parts))

    def take_rows(self, index):
        at = index.reshape(-1)
        rows = self._dense(pick_values(self.values, at), self.columns[at])
        return rows.reshape(*index.shape, self.fold.k)

    def matmul(self, x, precision=None):
        if x.shape[0] * self.columns.shape[-1] > self.fold.k:  # more is gathered than decoded
            return decoded_product(x, self, precision)
        return map_tiles(functools.partial(_gathered, precision=precision), x, self)


def _gathered(x, leaf, precision):
    values = value_rows(leaf.values).astype(x.dtype)
    dims = (((2,), (1,)), ((1,), (0,)))  # x (m, n, kept) . values (n, kept)
    y = lax.dot_general(
        x[:, leaf.columns], values, dims, precision, preferred_element_type=jnp.float32
    )
    return y.T
