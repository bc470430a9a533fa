"""Csr: the kept weights of each row and their columns, for weights that are nearly all zero."""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..kernels.decoded_tiles import decoded_product, map_tiles
from ..kernels.dispatch import at_most
from .row_sparse import RowSparse, RowSparseArray
from .sparse import compressed, decoded_values, index_dtype, narrow_indices


@dataclasses.dataclass(frozen=True)
class Csr(RowSparse):
    """Keeps round(density · k) of the k weights of each output channel and their indices.

    An index takes one byte up to 256 inputs and two bytes up to 65,536. All rows keep the same
    number of weights, so no row pointers are stored. A product with a few rows of x gathers the
    inputs of the kept weights: on a CPU this beats dense below a density of 1/5. Saad, 2003,
    section 3.4.

    Raises:
        ValueError: `density` is not between 0 and 1, or keeps none or all of k weights.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> leaf = Csr(1 / 64).encode(jnp.arange(256.0).reshape(64, 4))
        >>> jm.nbytes(leaf), leaf.decode()[-1].tolist()  # 4 of 4 + 1 bytes
        (20, [252.0, 253.0, 254.0, 255.0])
    """

    density: float = 0.05
    independent_rows: ClassVar[bool] = True

    def encode_masked(self, matrix, mask, fold, dtype):
        values, columns = compressed(matrix, mask, self.kept(fold.k))
        columns = narrow_indices(columns, fold.k)
        return CsrArray(values.astype(dtype), fold, jnp.dtype(dtype), columns)

    def cut_places(self, places, k):
        return places[..., : self.kept(k)].astype(index_dtype(k))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CsrArray(RowSparseArray):
    """Values (*stack, n, kept) and their columns, which rise along a row."""

    columns: Array  # (*stack, n, kept) uint8, uint16 or uint32
    places_field = "columns"

    def dense(self, values, places):
        zeros = jnp.zeros((*places.shape[:-1], self.fold.k), jnp.float32)
        return jnp.put_along_axis(zeros, places.astype(jnp.int32), values, -1, inplace=False)

    def matmul(self, x, precision=None):
        if not at_most(
            x.shape[0] * self.columns.shape[-1], self.fold.k
        ):  # gathers more than it decodes
            return decoded_product(x, self, precision)
        return map_tiles(functools.partial(_gathered, precision=precision), x, self)


def _gathered(x, leaf, precision):
    """x (m, k) . rows^T: (m, n) f32, by the inputs that the kept weights multiply."""
    values = decoded_values(leaf.values).astype(x.dtype)
    dims = (((2,), (1,)), ((1,), (0,)))  # x (m, n, kept) . values (n, kept)
    y = lax.dot_general(
        x[:, leaf.columns], values, dims, precision, preferred_element_type=jnp.float32
    )
    return y.T
