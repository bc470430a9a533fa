"""MappedRows: a function of a weight's rows, computed only of those that are read."""

import dataclasses
from collections.abc import Callable
from typing import Any

from jax import Array

from .row_slices import slice_along


@dataclasses.dataclass(frozen=True)
class MappedRows:
    """One layer `w` of a weight, an array or what is read by slices, with `fn` of each slice.

    `fn` keeps the shape and the dtype, and computes each row without the others.

    Example:
        >>> import jax.numpy as jnp
        >>> twice = MappedRows(jnp.arange(6.0).reshape(3, 2), lambda rows: 2 * rows)
        >>> twice.slice_along(1, 1, 1).tolist()
        [[2.0], [6.0], [10.0]]
    """

    w: Any
    fn: Callable[[Array], Array]

    shape = property(lambda self: self.w.shape)
    ndim = property(lambda self: self.w.ndim)
    size = property(lambda self: self.w.size)
    dtype = property(lambda self: self.w.dtype)

    def slice_along(self, start: Any, length: int, axis: int) -> Array:
        """`fn` of `length` entries from `start` on of an axis that is not summed over."""
        return self.fn(slice_along(self.w, start, length, axis))

    def dense(self) -> Array:
        """`fn` of all rows."""
        return self.fn(self.w.dense() if hasattr(self.w, "dense") else self.w)
