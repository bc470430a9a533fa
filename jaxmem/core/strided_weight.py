"""StridedWeight: a weight of NumPy read some rows at a time from the memory in which it lies.

JAX takes memory as it is only if it is contiguous and aligned. So that no copy of the whole weight
is made, the memory is one flat array of JAX, of which a slice gathers its numbers.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StridedWeight:
    """A weight whose number at index i is at `first` + Σ i · strides in (*head, *flat).

    Example:
        >>> bits = jnp.arange(2, 8, dtype=jnp.uint32)
        >>> head = jnp.arange(2, dtype=jnp.uint32)
        >>> w = StridedWeight(head, bits, jnp.int32(1), (2, 3), (3, 1), jnp.dtype("uint32"))
        >>> w.dense().tolist(), w.slice_along(1, 2, 1).tolist()
        ([[1, 2, 3], [4, 5, 6]], [[2, 3], [5, 6]])
    """

    head: Array  # (few,) unsigned integers: the bits of the numbers before `flat`
    flat: Array  # (numbers,) unsigned integers
    first: Array  # () int32
    shape: tuple[int, ...] = dataclasses.field(metadata=dict(static=True))
    strides: tuple[int, ...] = dataclasses.field(metadata=dict(static=True))  # in numbers
    dtype: Any = dataclasses.field(metadata=dict(static=True))

    ndim = property(lambda self: len(self.shape))
    size = property(lambda self: math.prod(self.shape))

    def slice_along(self, start: Any, length: int, axis: int) -> Array:
        """`length` entries of an axis from `start` on, gathered from the memory."""
        start = jnp.asarray(start, jnp.int32)
        # behind the barrier a loop over slices keeps all of this inside
        head, flat, start = lax.optimization_barrier((self.head, self.flat, start))
        shape = (*self.shape[:axis], length, *self.shape[axis + 1 :])
        index = jnp.broadcast_to(self.first + start * self.strides[axis], shape)
        for a, stride in enumerate(self.strides):
            index = index + lax.broadcasted_iota(jnp.int32, shape, a) * stride
        in_flat = index - len(head)
        bits = jnp.where(
            in_flat < 0,
            head.at[index].get(mode="clip"),
            flat.at[jnp.maximum(in_flat, 0)].get(mode="clip"),
        )
        return lax.bitcast_convert_type(bits, self.dtype)

    def dense(self) -> Array:
        """All of it, as an array."""
        return self.slice_along(0, self.shape[0], 0)
