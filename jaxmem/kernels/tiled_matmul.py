"""Products with an encoded weight that decode some of its rows at a time: never a dense weight."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

TILE = 1024  # rows decoded at a time
FEWER = 2**19  # weights of a tile that strands decode: experiments/speed/cpu_matvec.py
UNROLLED_TILES = 16  # tiles that an accelerator spells out, so that each stays on the chip

# On a CPU:
FEW = 32  # rows of bfloat16 that it multiplies faster as f32
ALONE = 4  # rows whose product takes no longer than the decoding
FEWEST = 2**17  # weights of a tile for them: two strands stay in a core's cache
LINE = 64  # bytes that it reads from memory at once


def decoded_product(x: Array, leaf: Any, precision=None, *, unrolled: int = 0) -> Array:
    """x (m, k) . rows^T as (m, n) f32, some rows decoded at a time: never a dense weight.

    By strands, but whole where tiles are `unrolled`: an accelerator interleaves on the chip.
    """
    product = lambda x, part: _product(x, part, precision, bool(unrolled))
    tile = TILE if unrolled else max(TILE // 4, FEWER // max(1, leaf.fold.k))
    return map_tiles(product, x, leaf, unrolled=unrolled, tile=tile)


def cpu_product(x: Array, leaf: Any, precision=None) -> Array:
    """The same for a CPU, which is slow at few rows of bfloat16."""
    x = x.astype(jnp.float32) if len(x) <= FEW else x
    leaf, more = leaf.prepare_for_cpu(x)
    if len(x) > ALONE:
        y = decoded_product(x, leaf, precision)
    else:
        product = lambda x, part: _product(x, part, precision, False)
        y = map_tiles(product, x, leaf, tile=max(32, FEWEST // max(1, leaf.fold.k)), fetch=True)
    return y if more is None else y + more


@functools.partial(jax.checkpoint, static_argnums=(2, 3))  # a gradient decodes again, keeps no tile
def _product(x, part, precision, whole):
    dims = (((1,), (1,)), ((), ()))
    how = dict(precision=precision, preferred_element_type=jnp.float32)
    if whole:
        return lax.dot_general(x, part.rows().astype(x.dtype), dims, **how)
    ys = [lax.dot_general(w.astype(x.dtype), x, dims, **how) for w in part.interleaved_rows()]
    return interleave(ys, -2).T


def map_tiles(
    product, x: Any, leaf: Any, *, unrolled: int = 0, tile: int = TILE, fetch: bool = False
) -> Array:
    """`product(x, part)` (m, rows of part) over parts of `leaf`, joined: (m, n).

    A loop, which keeps the program small; up to `unrolled` tiles one after the other, since a TPU
    copies what a loop reads to its own memory first (experiments/memory/tpu_memory.json).
    """
    n, tile = leaf.fold.n, tile - tile % 8
    size = next((t for t in range(tile, tile // 8, -8) if n % t == 0), tile)
    if n <= size:
        return product(x, leaf)
    at = functools.partial(fetched, leaf) if fetch else lambda start, size: start
    part = lambda start, size=size: product(x, leaf.slice_rows(at(start, size), size))
    if n <= size * unrolled:
        return jnp.concatenate([part(i, min(size, n - i)) for i in range(0, n, size)], 1)
    even = n - n % size
    y = lax.map(part, jnp.arange(0, even, size, dtype=jnp.int32))  # (tiles, m, size)
    y = jnp.moveaxis(y, 0, 1).reshape(y.shape[1], even)
    return y if even == n else jnp.concatenate([y, part(even, n - even)], 1)


def fetched(leaf: Any, start: Array, size: int) -> Array:
    """`start`, known once a byte of every cache line of its rows' codes has been read.

    Such reads wait for the memory together; decoding would wait for line after line, where the CPU
    does not foresee which comes next (that of experiments/speed/cpu_matvec.py).
    """
    codes = [a for a in jax.tree.leaves(leaf.slice_rows(start, size)) if a.dtype.itemsize == 1]
    lines = [lax.bitcast_convert_type(a[..., ::LINE], jnp.uint8).astype(jnp.int32) for a in codes]
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
    at = parts[0].ndim + axis
    n, longest = sum(part.shape[at] for part in parts), parts[0].shape[at]
    short = lambda part: [(0, longest - part.shape[at] if a == at else 0) for a in range(part.ndim)]
    parts = [part if part.shape[at] == longest else jnp.pad(part, short(part)) for part in parts]
    together = jnp.stack(parts, at + 1)
    shape = parts[0].shape
    together = together.reshape(*shape[:at], longest * len(parts), *shape[at + 1 :])
    return lax.slice_in_dim(together, 0, n, axis=at)
