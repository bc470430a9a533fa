"""encode_in_blocks: a weight encoded one layer or some rows at a time, in one program.

A codec's temporaries are several f32 copies of what it encodes. A loop over small blocks keeps them
small, so the program needs the weight, the encoded leaf and little more.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ..codecs import Cast, Smallest
from ..core import row_slices
from ..core.codec import Codec, RowEncoder, encode_layer, row_encoder, ties_layers
from ..core.fold import matrix_shape
from ..core.row_slices import as_bits, first_kept_axis, from_bits, slice_along

LEAST_BLOCKS = 16  # of a sequential codec, which takes up to 12 f32 copies of a block


def encode_in_blocks(codec: Codec, w: Any, axes: tuple[int, ...], stats: Any) -> Any:
    """`codec.encode(w, axes, stats)`; a weight of many numbers is encoded block by block.

    The layers of a stack are encoded one after another, unless the codec ties them. A layer is
    encoded some rows at a time if the codec has a `row_encoder`.

    Example:
        >>> import jax, jaxmem as jm
        >>> w = jax.ShapeDtypeStruct((4096, 4096), jnp.float32)
        >>> encode = jax.jit(lambda w: encode_in_blocks(jm.KMeans(3), w, (-2,), None))
        >>> memory = encode.lower(w).compile().memory_analysis()
        >>> memory.temp_size_in_bytes < jm.nbytes(w) / 4  # without blocks 9 times the weight
        True
    """
    if isinstance(codec, Smallest):  # which of its codecs that is depends on the whole weight
        codec = codec.smallest(w, axes, stats)
    rounds_numbers = isinstance(codec, Cast)  # each by itself, with no temporaries
    if w.size <= row_slices.BLOCK_WEIGHTS or ties_layers(codec) or rounds_numbers:
        return codec.encode(w, axes, stats)
    axes = tuple(a - w.ndim if a >= 0 else a for a in axes)
    if len(matrix_shape(w, axes)) > 2:
        return _encode_layers(codec, w, axes, stats)
    encoder = row_encoder(codec, w, axes, stats)
    if encoder is None:
        return encode_layer(codec, w, axes, stats)
    return _encode_rows(encoder, lambda w: codec.encode(w, axes, stats), w, axes)


def _encode_layers(codec: Codec, w: Any, axes: tuple[int, ...], stats: Any) -> Any:
    """The leaf of a stack, in a loop over its layers."""

    def layer(args):
        i, stats = args
        w_of_layer = slice_along(w, i, 1, 0).reshape(w.shape[1:])
        return jax.tree.map(as_bits, encode_in_blocks(codec, w_of_layer, axes, stats))

    shapes = jax.eval_shape(lambda: codec.encode(w, axes, stats))
    leaf = lax.map(layer, (jnp.arange(w.shape[0]), stats))
    return jax.tree.map(from_bits, leaf, shapes)


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
