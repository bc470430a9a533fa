"""Products with an encoded weight that decode one tile of rows at a time, never a whole weight."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from .dispatch import at_most

TILE_ROWS = 1024  # rows of a decoded tile
INTERLEAVED_TILE_WEIGHTS = 2**19  # weights of a tile in a loop: experiments/speed/cpu_matvec.py
UNROLLED_TILES = 16  # up to so many tiles are unrolled on an accelerator, and stay on the chip

# On a CPU:
FLOAT32_ROWS = 32  # up to so many rows of bfloat16 x are multiplied faster as f32
FETCHED_ROWS = 4  # up to so many rows of x multiply no slower than the weight is decoded
CPU_TILE_WEIGHTS = 2**17  # weights of a tile for so few rows: it stays in a core's cache
CACHE_LINE_BYTES = 64  # bytes that are read from memory at once


def decoded_product(x: Array, leaf: Any, precision=None, *, unrolled: int = 0) -> Array:
    """x (m, k) times the rows of a `MatrixLeaf`: (m, n) f32, with one tile decoded at a time.

    A loop over tiles multiplies interleaved rows apart, since a CPU is slow at interleaving.
    Tiles that are `unrolled` (at most so many) are decoded in order: an accelerator interleaves
    them on the chip.
    """
    product = lambda x, part: _product(x, part, precision, bool(unrolled))
    loop_rows = max(TILE_ROWS // 4, INTERLEAVED_TILE_WEIGHTS // max(1, leaf.fold.k))
    tile_rows = TILE_ROWS if unrolled else loop_rows
    return map_tiles(product, x, leaf, unrolled=unrolled, tile_rows=tile_rows)


def cpu_product(x: Array, leaf: Any, precision=None) -> Array:
    """`decoded_product` for a CPU, which multiplies few rows of bfloat16 slowly."""
    x = x.astype(jnp.float32) if at_most(x.shape[0], FLOAT32_ROWS) else x
    leaf, addend = leaf.prepare_for_cpu(x)
    if not at_most(x.shape[0], FETCHED_ROWS):
        y = decoded_product(x, leaf, precision)
    else:
        product = lambda x, part: _product(x, part, precision, False)
        tile_rows = max(32, CPU_TILE_WEIGHTS // max(1, leaf.fold.k))
        y = map_tiles(product, x, leaf, tile_rows=tile_rows, fetch=True)
    return y if addend is None else y + addend


@functools.partial(jax.checkpoint, static_argnums=(2, 3))  # a gradient decodes again, keeps no tile
def _product(x, part, precision, in_order):
    """x (m, k) times the rows of `part`, decoded in order or as interleaved rows: (m, rows) f32."""
    dims = (((1,), (1,)), ((), ()))
    options = dict(precision=precision, preferred_element_type=jnp.float32)
    if in_order:
        return lax.dot_general(x, part.rows().astype(x.dtype), dims, **options)
    rows = part.interleaved_rows()
    ys = [lax.dot_general(w.astype(x.dtype), x, dims, **options) for w in rows]
    return interleave(ys, -2).T


def map_tiles(
    product: Callable[[Any, Any], Array],
    x: Any,
    leaf: Any,
    *,
    unrolled: int = 0,
    tile_rows: int = TILE_ROWS,
    fetch: bool = False,
) -> Array:
    """`product(x, tile)` over the tiles of a leaf, joined along the rows.

    A loop keeps the program small. Up to `unrolled` tiles are spelled out one after the other,
    since a TPU copies what a loop reads to its own memory first
    (experiments/memory/tpu_memory.json).

    Args:
        product: takes x and a leaf of some rows; gives (m, rows).
        x: the array or pytree that each product takes whole.
        leaf: an unstacked `MatrixLeaf` of n rows.
        unrolled: the most tiles that are spelled out; 0 for a loop.
        tile_rows: the most rows of a tile, rounded down to a multiple of 8. A tile has fewer
            where that divides n and is no less than an eighth.
        fetch: whether a tile's codes are read from memory before they are decoded (`fetched`).

    Returns:
        (m, n)
    """
    # Choose the rows of a tile.
    n, most = leaf.fold.n, tile_rows - tile_rows % 8
    size = next((t for t in range(most, most // 8, -8) if n % t == 0), most)
    if n <= size:
        return product(x, leaf)

    # Spell out a few tiles.
    begin = functools.partial(fetched, leaf) if fetch else lambda start, size: start
    tile = lambda start, size=size: product(x, leaf.slice_rows(begin(start, size), size))
    if n <= size * unrolled:
        return jnp.concatenate([tile(i, min(size, n - i)) for i in range(0, n, size)], 1)

    # Or loop over whole tiles, then take the rows that are left.
    even = n - n % size
    y = lax.map(tile, jnp.arange(0, even, size, dtype=jnp.int32))  # (tiles, m, size)
    y = jnp.moveaxis(y, 0, 1).reshape(y.shape[1], even)
    return y if even == n else jnp.concatenate([y, tile(even, n - even)], 1)


def fetched(leaf: Any, start: Array, size: int) -> Array:
    """`start`, after one byte of each cache line of the codes of `size` rows from it is read.

    Such reads wait for the memory together. Decoding would wait for line after line where the CPU
    does not foresee which comes next, as the CPU of experiments/speed/cpu_matvec.py does not.
    """
    codes = [a for a in jax.tree.leaves(leaf.slice_rows(start, size)) if a.dtype.itemsize == 1]
    as_bytes = lambda a: lax.bitcast_convert_type(a, jnp.uint8)
    lines = [as_bytes(a[..., ::CACHE_LINE_BYTES]).astype(jnp.int32) for a in codes]
    return start + sum(jnp.minimum(a.sum(), 0) for a in lines)  # no sum is below 0


def interleave(parts: list[Array], axis: int) -> Array:
    """The array of which parts[j] holds every len(parts)-th element along `axis` (negative) from j.

    Example:
        >>> import jax.numpy as jnp
        >>> interleave([jnp.array([0, 3]), jnp.array([1, 4]), jnp.array([2])], -1).tolist()
        [0, 1, 2, 3, 4]
    """
    if len(parts) == 1:
        return parts[0]
    axis = parts[0].ndim + axis
    n, longest = sum(part.shape[axis] for part in parts), parts[0].shape[axis]
    # Fill the shorter parts up, stack them element by element, and cut the filling off.
    missing = lambda part: [
        (0, longest - part.shape[axis] if a == axis else 0) for a in range(part.ndim)
    ]
    parts = [p if p.shape[axis] == longest else jnp.pad(p, missing(p)) for p in parts]
    stacked = jnp.stack(parts, axis + 1)
    shape = parts[0].shape
    joined = stacked.reshape(*shape[:axis], longest * len(parts), *shape[axis + 1 :])
    return lax.slice_in_dim(joined, 0, n, axis=axis)
