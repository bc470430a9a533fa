"""Coo: the kept weights of a matrix with their rows and columns: outliers, wherever they are."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ..core.arguments import INTEGERS, takes
from ..core.fold import Fold, matrix_shape
from ..core.row_slices import as_bits, from_bits, scan_rows
from .sparse import (
    Count,
    DensitySparse,
    SparseArray,
    codec_count,
    compressed,
    decoded_values,
    narrow_indices,
    nth_key,
    sort_keys,
)


@dataclasses.dataclass(frozen=True)
class Coo(DensitySparse):
    """Keeps round(density · n · k) of the weights of a matrix, the largest of all its rows.

    An index takes one byte up to 256 rows or columns and two bytes up to 65,536. In a `Sum` with
    another codec it stores the outliers: `Sum((Coo(0.005), Int(3, group=64)))`. Dettmers et al.,
    2023 (SpQR).

    Raises:
        ValueError: `density` is not between 0 and 1, or keeps none or all of the weights.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> w = jnp.ones((64, 8)).at[5, 3].set(-9.0).at[9, 3].set(7.0)
        >>> leaf = Coo(2 / 512).encode(w)
        >>> jm.nbytes(leaf), leaf.decode()[5, 3]  # two of 4 + 1 + 1 bytes
        (12, Array(-9., dtype=float32))
    """

    density: float = 0.005
    unit = "weights"

    def mask(self, scores, count: Count = codec_count):
        flat = lax.collapse(scores, scores.ndim - 2)
        return super().mask(flat, count).reshape(scores.shape)

    def encode_masked(self, matrix, mask, fold, dtype):
        flat = lambda a: lax.collapse(a, a.ndim - 2)[..., None, :]
        values, places = compressed(flat(matrix), flat(mask), self.kept(fold.n * fold.k))
        row, column = jnp.divmod(places, fold.k)
        row, column = narrow_indices(row, fold.n), narrow_indices(column, fold.k)
        return CooArray(values.astype(dtype), fold, jnp.dtype(dtype), row, column)

    def encode_by_slices(self, w, axes, stats):
        n, k = matrix_shape(w, axes)
        fold = Fold.of(w, axes)
        kept = self.kept(n * k)
        flat = lambda rows: Fold.from_weight(rows, axes)[0].reshape(-1)
        keys = lambda rows: sort_keys(jnp.abs(flat(rows).astype(jnp.float32)))

        def count(holds):
            step = lambda total, rows, _: total + holds(keys(rows)).sum(dtype=jnp.int32)
            return scan_rows(step, jnp.int32(0), w, axes)

        least = nth_key(lambda trial: count(lambda key: key >= trial), kept)
        ties = kept - count(lambda key: key > least)  # weights of the least kept size that stay

        def put(state, rows, start):
            """Writes the kept weights of some rows, and their places, behind those before them."""
            values, places, used, seen = state
            key = keys(rows)
            is_tie = key == least
            mask = (key > least) | is_tie & (seen + jnp.cumsum(is_tie, dtype=jnp.int32) <= ties)
            order = jnp.cumsum(mask, dtype=jnp.int32)
            at = jnp.where(mask, used + order - 1, kept)
            values = values.at[at].set(as_bits(flat(rows)), mode="drop")
            places = places.at[at].set(start * k + jnp.arange(len(at)), mode="drop")
            return values, places, used + order[-1], seen + is_tie.sum(dtype=jnp.int32)

        zero = jnp.int32(0)
        first = (as_bits(jnp.zeros(kept, w.dtype)), jnp.zeros(kept, jnp.int32), zero, zero)
        values, places, *_ = scan_rows(put, first, w, axes)
        row, column = jnp.divmod(places[None], k)
        row, column = narrow_indices(row, n), narrow_indices(column, k)
        return CooArray(from_bits(values, w)[None], fold, jnp.dtype(w.dtype), row, column)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CooArray(SparseArray):
    """Values, their rows and their columns, each (*stack, 1, kept).

    `Coo` has them in the order of the rows. Values at one place add up, as in a BCOO matrix.
    """

    row: Array  # uint8, uint16 or uint32
    column: Array

    def rows(self):
        return self._dense(self.row.astype(jnp.int32), self.fold.n)

    def _dense(self, row, n):
        """Rows (*stack, n, k) f32: each value in its `row` (*stack, 1, kept), if below n."""
        k, kept = self.fold.k, self.row.shape[-1]
        flat = lambda a: a.reshape(math.prod(a.shape[:-1]), kept)
        row, column = flat(row), flat(self.column.astype(jnp.int32))
        layer = jnp.arange(len(row))[:, None]
        zeros = jnp.zeros((len(row), n, k), jnp.float32)
        values = flat(decoded_values(self.values))
        dense = zeros.at[layer, row, column].add(values, mode="drop")
        return dense.reshape(*self.batch_shape, n, k)

    def slice_rows(self, start, size):
        row = self.row.astype(jnp.int32) - start
        outside = (row < 0) | (row >= size)
        fold = dataclasses.replace(self.fold, kept=(size,))
        return dataclasses.replace(self, row=jnp.where(outside, size, row), fold=fold)

    def take_rows(self, index):
        flat = index.reshape(-1)
        # Each row that is taken, maybe more than once, is decoded once, in one of its places.
        slot = jnp.full(self.fold.n, flat.size).at[flat].set(jnp.arange(flat.size))
        rows = self._dense(slot[self.row.astype(jnp.int32)], flat.size)
        return rows[slot[flat]].reshape(*index.shape, self.fold.k)


@takes()
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
    values = decoded_values(leaf.values)[0].astype(leaf.dtype)
    return BCOO((values, place), shape=(leaf.fold.n, leaf.fold.k))


@takes(axes=INTEGERS)
def from_bcoo(matrix: Any, axes: tuple[int, ...] = (-1,)) -> CooArray:
    """The leaf that stands for a BCOO or BCSR matrix, which a product sums over `axes`.

    Values that the matrix has at one place add up. Padding, which the matrix has at places outside
    its shape, is left out; where the matrix is traced, it becomes zeros inside.

    Raises:
        ValueError: it has batch or dense axes, or is no matrix.
        TypeError: it is of another class.

    Example:
        >>> import jax.numpy as jnp
        >>> from jax.experimental.sparse import BCOO
        >>> leaf = from_bcoo(BCOO.fromdense(jnp.diag(jnp.arange(3.0))))
        >>> leaf.shape, leaf.decode()[2].tolist()
        ((3, 3), [0.0, 0.0, 2.0])
    """
    from jax.experimental.sparse import BCOO, BCSR

    if not isinstance(matrix, BCOO | BCSR):
        kind = type(matrix).__name__
        raise TypeError(f"from_bcoo takes a BCOO or BCSR matrix, got {kind}; see BCOO.fromdense")
    if matrix.ndim != 2 or matrix.n_batch or matrix.n_dense:
        raise ValueError(f"from_bcoo takes a matrix with sparse axes only, got {matrix}")
    matrix = _with_inside_places(matrix.to_bcoo() if isinstance(matrix, BCSR) else matrix)
    fold = Fold.of(matrix, axes)
    row, column = matrix.indices.T if axes in ((-1,), (1,)) else matrix.indices.T[::-1]
    narrow = lambda a, size: narrow_indices(a[None], size)
    values, dtype = matrix.data[None], jnp.dtype(matrix.dtype)
    return CooArray(values, fold, dtype, narrow(row, fold.n), narrow(column, fold.k))


def _with_inside_places(matrix: Any) -> Any:
    """The BCOO matrix with each place once and no padding; traced, padding is zeros at (0, 0)."""
    if not isinstance(matrix.indices, jax.core.Tracer):
        places = np.asarray(matrix.indices)
        inside = (places < np.array(matrix.shape)).all()
        if inside and len(np.unique(places, axis=0)) == len(places):
            return matrix
        matrix = matrix.sum_duplicates()
    inside = (matrix.indices < jnp.array([matrix.shape])).all(-1)
    places = jnp.where(inside[:, None], matrix.indices, 0)
    return type(matrix)((jnp.where(inside, matrix.data, 0), places), shape=matrix.shape)
