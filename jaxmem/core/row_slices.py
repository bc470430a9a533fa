"""Row slices: some rows of a weight read inside a compiled loop, without a copy of all of it.

A row is an output channel: an index of the axes that no product sums over.
"""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax.numpy as jnp
from jax import lax

BLOCK_WEIGHTS = 2**18  # 1 MiB in f32: temporaries of this size stay in a cache of a CPU
T = TypeVar("T")


def first_kept_axis(w: Any, axes: tuple[int, ...]) -> tuple[int, int]:
    """The axis of a weight that counts rows slowest, and the rows that one index of it has.

    `axes` are negative: those that products sum over.

    Example:
        >>> w = jnp.zeros((64, 8, 16))  # d, heads, head dim
        >>> first_kept_axis(w, (-3,))
        (1, 16)
    """
    kept = [a for a in range(w.ndim) if a - w.ndim not in axes]
    size = lambda axis: w.shape[axis]
    axis = next((a for a in kept if size(a) > 1), kept[0])
    return axis, math.prod(size(a) for a in kept if a > axis)


def slice_along(w: Any, start: Any, length: int, axis: int) -> Any:
    """`length` entries of an axis from a traced `start` on, read inside a loop.

    The barrier keeps the integers of `as_bits` inside the loop, where they are of one slice.

    Example:
        >>> slice_along(jnp.arange(5.0), 1, 2, 0).tolist()
        [1.0, 2.0]
    """
    if hasattr(w, "slice_along"):  # a `Remainder`
        return w.slice_along(start, length, axis)
    w, start = lax.optimization_barrier((w, start))
    return from_bits(lax.dynamic_slice_in_dim(as_bits(w), start, length, axis), w)


def as_bits(x: Any) -> Any:
    """A bf16 array as integers, others as they are.

    The compiler of a CPU would slice or update a bf16 array in an f32 copy of all of it.

    Example:
        >>> as_bits(jnp.ones(1, jnp.bfloat16)).tolist(), as_bits(jnp.ones(1)).tolist()
        ([16256], [1.0])
    """
    return lax.bitcast_convert_type(x, jnp.uint16) if x.dtype == jnp.bfloat16 else x


def from_bits(bits: Any, like: Any) -> Any:
    """The array that `as_bits` made `bits` of; `like` has its dtype.

    Example:
        >>> x = jnp.ones(1, jnp.bfloat16)
        >>> from_bits(as_bits(x), x).tolist()
        [1.0]
    """
    return bits if bits.dtype == like.dtype else lax.bitcast_convert_type(bits, like.dtype)


def scan_rows(
    step: Callable[[T, Any, Any], T],
    state: T,
    w: Any,
    axes: tuple[int, ...],
    least_blocks: int | None = None,
) -> T:
    """The last state of `step(state, block, start)` over the blocks of rows of `w`, in order.

    A block starts at a multiple of 8 rows, where a byte of packed codes starts.

    Args:
        step: takes the state, some rows of the weight, and the index of the first one.
        state: a tree of arrays.
        w: one layer of a weight, an array or a `Remainder`.
        axes: the axes that products sum over.
        least_blocks: blocks may have a weight's numbers over this, where that is more than
            `BLOCK_WEIGHTS`: matrix products of larger blocks are faster.

    Example:
        >>> w = jnp.arange(12.0).reshape(4, 3)
        >>> scan_rows(lambda most, rows, _: jnp.maximum(most, rows.max()), 0.0, w, (-2,)).item()
        11.0
    """
    axes = tuple(a - w.ndim if a >= 0 else a for a in axes)
    axis, rows = first_kept_axis(w, axes)
    size = w.shape[axis]
    weights = max(BLOCK_WEIGHTS, w.size // least_blocks if least_blocks else 0)
    unit = 8 // math.gcd(rows, 8)
    length = max(1, weights // max(w.size // max(size, 1) * unit, 1)) * unit
    if length >= size:
        return step(state, w.dense() if hasattr(w, "dense") else w, jnp.int32(0))
    block = lambda i, length: (slice_along(w, i, length, axis), i * rows)
    whole = size // length
    state = lax.fori_loop(0, whole, lambda i, s: step(s, *block(i * length, length)), state)
    rest = size % length
    return step(state, *block(jnp.int32(whole * length), rest)) if rest else state
