"""encode_in_blocks: a weight encoded one layer or some rows at a time, in one program.

A codec's temporaries are several f32 copies of what it encodes. A loop over small blocks keeps them
small, so the program needs the weight, the encoded leaf and little more.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ..codecs import Smallest
from ..core.codec import Codec, has_independent_rows, needs_stats, ties_layers
from ..core.fold import matrix_shape

BLOCK_WEIGHTS = 2**18  # 1 MiB in f32: temporaries of this size stay in a cache of a CPU


def encode_in_blocks(codec: Codec, w: Any, axes: tuple[int, ...], stats: Any) -> Any:
    """`codec.encode(w, axes, stats)`; a weight of many numbers is encoded block by block.

    The layers of a stack are encoded one after another, unless the codec ties them. A layer is
    encoded some rows at a time if the codec has independent rows and needs no stats: a solver with
    stats would factorise them again for each block.

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
    whole = lambda w, stats: codec.encode(w, axes, stats)
    if w.size <= BLOCK_WEIGHTS or ties_layers(codec):
        return whole(w, stats)
    axes = tuple(a - w.ndim if a >= 0 else a for a in axes)
    if len(matrix_shape(w, axes)) > 2:
        return _encode_layers(codec, w, axes, stats)
    if has_independent_rows(codec) and not needs_stats(codec):
        return _encode_rows(functools.partial(whole, stats=stats), w, axes)
    return whole(w, stats)


def _encode_layers(codec: Codec, w: Any, axes: tuple[int, ...], stats: Any) -> Any:
    """The leaf of a stack, in a loop over its layers."""

    def layer(args):
        i, stats = args
        w_of_layer = _slice(w, i, 1, 0).reshape(w.shape[1:])
        return jax.tree.map(_as_bits, encode_in_blocks(codec, w_of_layer, axes, stats))

    shapes = jax.eval_shape(lambda: codec.encode(w, axes, stats))
    leaf = lax.map(layer, (jnp.arange(w.shape[0]), stats))
    return jax.tree.map(_from_bits, leaf, shapes)


def _encode_rows(encode: Callable, w: Any, axes: tuple[int, ...]) -> Any:
    """encode(w) of one layer, in a loop over blocks of rows that writes into the whole leaf.

    A block starts at a multiple of 8 rows, where a byte of packed codes starts. The last block may
    overlap the one before it; the rows that both encode come out equal.
    """
    axis, rows = first_kept_axis(w, axes)
    size, unit = w.shape[axis], 8 // math.gcd(rows, 8)
    step = max(1, BLOCK_WEIGHTS // (w.size // size * unit)) * unit
    length = step + size % unit
    if length >= size:
        return encode(w)
    block = jax.ShapeDtypeStruct((*w.shape[:axis], length, *w.shape[axis + 1 :]), w.dtype)
    parts = jax.tree.leaves(jax.eval_shape(encode, block))
    arrays, tree = jax.tree.flatten(jax.eval_shape(encode, w))
    row_axes = [_only_difference(a.shape, b.shape) for a, b in zip(arrays, parts)]

    def encode_block(i, leaf):
        start = jnp.minimum(i * step, size - length)
        parts = map(_as_bits, jax.tree.leaves(encode(_slice(w, start, length, axis))))
        return [write(*args, start) for args in zip(leaf, parts, row_axes)]

    def write(array, part, at, start):
        if at is None:  # the same for all rows
            return part
        per_unit = (array.shape[at] - part.shape[at]) // ((size - length) // unit)
        return lax.dynamic_update_slice_in_dim(array, part, start // unit * per_unit, at)

    count = -(-(size - length) // step) + 1
    zeros = [_as_bits(jnp.zeros(a.shape, a.dtype)) for a in arrays]
    leaf = lax.fori_loop(0, count, encode_block, zeros)
    return tree.unflatten(map(_from_bits, leaf, arrays))


def _slice(w: Any, start: Any, length: int, axis: int) -> Any:
    """`length` entries of an axis from a traced `start` on, read inside a loop.

    The barrier keeps the integers of `_as_bits` inside the loop, where they are of one slice.
    """
    w, start = lax.optimization_barrier((w, start))
    return _from_bits(lax.dynamic_slice_in_dim(_as_bits(w), start, length, axis), w)


def _as_bits(x: Any) -> Any:
    """A bf16 array as integers, others as they are.

    The compiler of a CPU would slice or update a bf16 array in an f32 copy of all of it.
    """
    return lax.bitcast_convert_type(x, jnp.uint16) if x.dtype == jnp.bfloat16 else x


def _from_bits(bits: Any, like: Any) -> Any:
    """The array that `_as_bits` made `bits` of; `like` has its dtype."""
    return bits if bits.dtype == like.dtype else lax.bitcast_convert_type(bits, like.dtype)


def first_kept_axis(w: Any, axes: tuple[int, ...]) -> tuple[int, int]:
    """The axis of a weight that counts rows slowest, and the rows that one index of it has."""
    kept = [a for a in range(w.ndim) if a - w.ndim not in axes]
    size = lambda axis: w.shape[axis]
    axis = next((a for a in kept if size(a) > 1), kept[0])
    return axis, math.prod(size(a) for a in kept if a > axis)


def _only_difference(shape: tuple[int, ...], other: tuple[int, ...]) -> int | None:
    """The axis in which two shapes differ; None if they are equal."""
    return next((a for a, (m, n) in enumerate(zip(shape, other)) if m != n), None)
