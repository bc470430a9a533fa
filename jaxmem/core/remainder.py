"""Remainder: a weight less what its encoded parts stand for, read some rows at a time.

So the error of one codec is encoded by another without an array of all of it.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from .fold import Fold
from .matrix_leaf import MatrixLeaf
from .row_slices import as_bits, first_kept_axis, from_bits, scan_rows, slice_along


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Remainder:
    """One layer `w` of a weight less its encoded `parts`, subtracted in f32, one after another.

    `axes` are negative: those that products sum over.

    Example:
        >>> import jaxmem as jm
        >>> w = jnp.arange(12.0).reshape(4, 3)
        >>> rest = Remainder(w, (jm.Int(2).encode(w),), (-2,), w.dtype)
        >>> rest.dense()[:, 1].tolist(), (w - jm.Int(2).encode(w).decode())[:, 1].tolist()
        ([1.0, 4.0, -3.0, 0.0], [1.0, 4.0, -3.0, 0.0])
    """

    w: Array
    parts: tuple
    axes: tuple[int, ...] = dataclasses.field(metadata=dict(static=True))
    dtype: Any = dataclasses.field(metadata=dict(static=True))

    shape = property(lambda self: self.w.shape)
    ndim = property(lambda self: self.w.ndim)
    size = property(lambda self: self.w.size)

    def slice_along(self, start: Any, length: int, axis: int) -> Array:
        """`length` entries from `start` on of the first axis that is not summed over."""
        rows = slice_along(self.w, start, length, axis).astype(jnp.float32)
        matrix, fold = Fold.from_weight(rows, self.axes)
        n, per_entry = len(matrix), len(matrix) // length
        for part in self.parts:
            if isinstance(part, MatrixLeaf):
                whole, start = lax.optimization_barrier((part, start))
                rows = rows - fold.unfold(whole.slice_rows(start * per_entry, n).rows())
            else:
                rows = rows - slice_along(part.astype(jnp.float32).decode(), start, length, axis)
        return rows.astype(self.dtype)

    def dense(self) -> Array:
        """All of it, written into an array some rows at a time."""
        axis, per_entry = first_kept_axis(self.w, self.axes)

        def write(out, rows, start):
            rows = self.slice_along(start // per_entry, rows.shape[axis], axis)
            return lax.dynamic_update_slice_in_dim(out, as_bits(rows), start // per_entry, axis)

        zeros = as_bits(jnp.zeros(self.shape, self.dtype))
        return from_bits(scan_rows(write, zeros, self.w, self.axes), self)
