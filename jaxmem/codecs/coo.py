"""Coo: the kept weights of a matrix beside their rows and columns: outliers, wherever they are."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ..core.fold import Fold
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
    value_rows,
)


@dataclasses.dataclass(frozen=True)
class Coo(Sparse):
    """Keeps round(density · n · k) of the weights of a matrix, the largest of all its rows.

    An index takes a byte up to 256 rows or columns and two up to 65,536. Beside another codec in a
    `Sum` it holds the outliers: `Sum((Coo(0.005), Int(3, group=64)))`. Dettmers et al., 2023
    (SpQR).

    Raises:
        ValueError: a density that is not between 0 and 1, or keeps none or all of the weights.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> w = jnp.ones((64, 8)).at[5, 3].set(-9.0).at[9, 3].set(7.0)
        >>> leaf = Coo(2 / 512).encode(w)
        >>> jm.nbytes(leaf), leaf.decode()[5, 3]  # two of 4 + 1 + 1 bytes
        (12, Array(-9., dtype=float32))
    """

    density: float = 0.005

    def __post_init__(self):
        checked_density(self.density, "Coo")

    def mask(self, scores, count: Count = kept_of):
        flat = scores.reshape(*scores.shape[:-2], -1)
        size = flat.shape[-1]
        return highest(flat, count(size, self._count(size))).reshape(scores.shape)

    def hold(self, matrix, mask, fold, dtype):
        flat = lambda a: a.reshape(*a.shape[:-2], 1, -1)
        values, places = compressed(flat(matrix), flat(mask), self._count(fold.n * fold.k))
        row, column = jnp.divmod(places, fold.k)
        row, column = row.astype(index_dtype(fold.n)), column.astype(index_dtype(fold.k))
        return CooArray(values.astype(dtype), fold, jnp.dtype(dtype), row, column)

    def _count(self, size):
        return kept_count(self.density, size, "weights")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CooArray(SparseArray):
    """Values and their places (*stack, 1, kept), row by row."""

    row: Array  # uint8, uint16 or uint32
    column: Array

    def rows(self):
        return self._dense(self.row.astype(jnp.int32), self.fold.n)

    def _dense(self, row, n):
        """Rows (*stack, n, k) of values in rows `row` (*stack, 1, kept); the rest are dropped."""
        k, kept = self.fold.k, self.row.shape[-1]
        row = row.reshape(-1, kept)
        column = self.column.astype(jnp.int32).reshape(-1, kept)
        layer = jnp.arange(len(row))[:, None]
        zeros = jnp.zeros((len(row), n, k), jnp.float32)
        values = value_rows(self.values).reshape(-1, kept)
        dense = zeros.at[layer, row, column].set(values, mode="drop")
        return dense.reshape(*self.batch_shape, n, k)

    def slice_rows(self, start, size):
        here = self.row.astype(jnp.int32) - start
        outside = (here < 0) | (here >= size)
        fold = dataclasses.replace(self.fold, kept=(size,))
        return dataclasses.replace(self, row=jnp.where(outside, size, here), fold=fold)

    def take_rows(self, index):
        at = index.reshape(-1)
        slot = jnp.full(self.fold.n, at.size).at[at].set(jnp.arange(at.size))  # one for each row
        rows = self._dense(slot[self.row.astype(jnp.int32)], at.size)
        return rows[slot[at]].reshape(*index.shape, self.fold.k)


def to_bcoo(leaf: CooArray) -> Any:
    """The matrix (n, k) of an unstacked leaf as `jax.experimental.sparse.BCOO`, sharing its values.

    Example:
        >>> import jax.numpy as jnp
        >>> w = jnp.arange(8.0).reshape(4, 2)
        >>> to_bcoo(Coo(0.25).encode(w)).todense().tolist()
        [[0.0, 0.0, 0.0, 6.0], [0.0, 0.0, 0.0, 7.0]]
    """
    from jax.experimental.sparse import BCOO

    if leaf.batch_shape:
        raise ValueError(f"to_bcoo takes a matrix, got a stack of {leaf.batch_shape}: map over it")
    place = jnp.stack([leaf.row[0].astype(jnp.int32), leaf.column[0].astype(jnp.int32)], -1)
    values = value_rows(leaf.values)[0].astype(leaf.dtype)
    return BCOO((values, place), shape=(leaf.fold.n, leaf.fold.k), unique_indices=True)


def from_bcoo(matrix: Any, axes: tuple[int, ...] = (-1,)) -> CooArray:
    """The leaf that stands for a BCOO matrix, which a product sums over `axes`.

    Raises:
        ValueError: it has batch or dense axes, or is no matrix.

    Example:
        >>> import jax.numpy as jnp
        >>> from jax.experimental.sparse import BCOO
        >>> leaf = from_bcoo(BCOO.fromdense(jnp.diag(jnp.arange(3.0))))
        >>> leaf.shape, leaf.decode()[2].tolist()
        ((3, 3), [0.0, 0.0, 2.0])
    """
    if matrix.ndim != 2 or matrix.n_batch or matrix.n_dense:
        raise ValueError(f"from_bcoo takes a matrix with sparse axes only, got {matrix}")
    shape = jax.ShapeDtypeStruct(matrix.shape, matrix.dtype)
    folds = []
    jax.eval_shape(lambda w: folds.append(Fold.from_weight(w, axes)[1]), shape)
    row, column = matrix.indices.T if axes in ((-1,), (1,)) else matrix.indices.T[::-1]
    narrow = lambda a, size: a[None].astype(index_dtype(size))
    (fold,) = folds
    values, dtype = matrix.data[None], jnp.dtype(matrix.dtype)
    return CooArray(values, fold, dtype, narrow(row, fold.n), narrow(column, fold.k))
