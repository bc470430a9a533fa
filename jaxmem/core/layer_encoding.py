"""encode_layer: one layer of a weight encoded some rows at a time, where its codec can."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from . import row_slices
from .codec import Codec, RowEncoder, row_encoder
from .remainder import Remainder
from .row_slices import as_bits, first_kept_axis, from_bits, slice_along
from .strided_weight import StridedWeight

LEAST_BLOCKS = 32  # of a sequential codec, which takes up to 20 f32 copies of a block


def encode_layer(codec: Codec, w: Any, axes: tuple[int, ...], stats: Any) -> Any:
    """The leaf of one layer, as `codec.encode` makes it.

    `w` is an array, a `Remainder` or a `StridedWeight`.

    It is encoded some rows at a time by a codec with a `row_encoder`, and read some rows at a time
    by one with `encode_by_slices`. Other codecs encode all of it at once.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> encode_layer(jm.Coo(1 / 4), jnp.arange(8.0).reshape(4, 2), (-2,), None).row.tolist()
        [[0, 1]]
    """
    by_slices = getattr(codec, "encode_by_slices", None)
    if isinstance(w, Remainder):
        if by_slices:
            return by_slices(w, axes, stats)
        w = w.dense()
    of_array = lambda w: codec.encode(w, axes, stats)
    encode = lambda w: of_array(w.dense() if isinstance(w, StridedWeight) else w)
    if not w.size:
        return encode(w)
    if (encoder := row_encoder(codec, w, axes, stats)) is not None:
        return _encode_rows(encoder, encode, w, axes)
    return by_slices(w, axes, stats) if by_slices else encode(w)


def _encode_rows(encoder: RowEncoder, encode: Callable, w: Any, axes: tuple[int, ...]) -> Any:
    """encode(w) of one layer, in a loop over blocks of rows that writes into the whole leaf.

    A block starts at a multiple of 8 rows, where a byte of packed codes starts, and of the rows
    that the codec encodes together. The last block may overlap the one before it; the rows that
    both encode come out equal.
    """
    axis, rows = first_kept_axis(w, axes)
    size, together = w.shape[axis], math.lcm(encoder.unit, 8)
    unit = together // math.gcd(rows, together)
    weights = max(row_slices.BLOCK_WEIGHTS, w.size // LEAST_BLOCKS if encoder.sequential else 0)
    step = max(1, weights // (w.size // size * unit)) * unit
    length = step + size % unit
    if length >= size:
        return encode(w)
    block = jax.ShapeDtypeStruct((*w.shape[:axis], length, *w.shape[axis + 1 :]), w.dtype)
    parts = jax.tree.leaves(jax.eval_shape(encoder.encode, block, 0))
    arrays, tree = jax.tree.flatten(jax.eval_shape(encode, w))
    row_axes = [_only_difference(a.shape, b.shape) for a, b in zip(arrays, parts)]

    def encode_block(i, leaf):
        start = jnp.minimum(i * step, size - length)
        leaf_of_block = encoder.encode(slice_along(w, start, length, axis), start * rows)
        parts = jax.tree.leaves(leaf_of_block)
        return [write(*args, start) for args in zip(leaf, parts, row_axes)]

    def write(array, part, at, start):
        if at is None:  # the same for all rows
            return part
        per_unit = (array.shape[at] - part.shape[at]) // ((size - length) // unit)
        at_start = start // unit * per_unit
        return lax.dynamic_update_slice_in_dim(array, as_bits(part), at_start, at)

    count = -(-(size - length) // step) + 1
    zeros = [jnp.zeros(a.shape, a.dtype) for a in arrays]
    zeros = [a if at is None else as_bits(a) for a, at in zip(zeros, row_axes)]
    leaf = lax.fori_loop(0, count, encode_block, zeros)
    return tree.unflatten(map(from_bits, leaf, arrays))


def _only_difference(shape: tuple[int, ...], other: tuple[int, ...]) -> int | None:
    """The axis in which two shapes differ; None if they are equal."""
    return next((a for a, (m, n) in enumerate(zip(shape, other)) if m != n), None)
