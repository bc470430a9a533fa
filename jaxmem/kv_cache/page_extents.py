"""A pool that grows by extents, and gives the bytes of an empty extent back.

An array cannot be resized in place, and a copy would hold both: so a pool is a tuple of extents,
whose pages are numbered through. A program is compiled for each number of extents, and reads a page
from each of them.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from ..core.arguments import POSITIVE, takes
from .page_pool import PagePool, empty_store


@takes(pages=POSITIVE)
def grow(pool: PagePool, pages: int) -> PagePool:
    """The pool with `pages` free pages more, in an extent of their own.

    Example:
        >>> import jaxmem as jm
        >>> from jaxmem.architectures import llama
        >>> sizes = dict(vocab=64, width=32, ffn=48, layers=2, heads=4, kv_heads=2, head_dim=8)
        >>> pool = jm.Pages(size=8).empty(llama.Config(**sizes), pages=4, rows=2, most=4)
        >>> larger = jm.pages.grow(pool, 6)
        >>> larger.capacity, int(larger.top), jm.pages.shrink(larger).capacity
        (10, 10, 4)
    """
    keys = pool.stores[0].keys
    layers, _, heads = keys.shape[:3]
    sizes, width = (layers, pages + 1, heads), pool.heads[1]
    store = empty_store(pool.options, sizes, width, keys.dtype, pool.is_latent)
    last = pool.capacity + pages
    new = jnp.arange(last, pool.capacity, -1, dtype=jnp.int32)
    return dataclasses.replace(
        pool,
        stores=(*pool.stores, store),
        refs=jnp.concatenate([pool.refs, jnp.zeros(pages, jnp.int32)]),
        stack=jnp.concatenate([new, pool.stack]),  # older extents are taken first
        top=pool.top + pages,
    )


@takes()
def shrink(pool: PagePool) -> PagePool:
    """The pool without its last extents, as far as all of their pages are free.

    Their bytes are free when nothing else refers to the pool that was given. The first extent
    stays. This reads counts on the host, and cannot be traced.

    Example:
        >>> import jaxmem as jm
        >>> from jaxmem.architectures import llama
        >>> sizes = dict(vocab=64, width=32, ffn=48, layers=2, heads=4, kv_heads=2, head_dim=8)
        >>> pool = jm.Pages(size=8).empty(llama.Config(**sizes), pages=1, rows=1, most=4)
        >>> pool, _ = jm.pages.alloc(jm.pages.grow(pool, 2), jnp.array([16]))
        >>> jm.pages.shrink(pool).capacity  # a page of the second extent is in use
        3
        >>> jm.pages.shrink(jm.pages.release(pool, jnp.array([0]))).capacity
        1
    """
    parts = (pool.refs, pool.stack, pool.top)
    refs, stack, top = (np.asarray(x) for x in jax.device_get(parts))
    stores, capacity = list(pool.stores), pool.capacity
    while len(stores) > 1 and not refs[capacity + 1 - stores[-1].pages :].any():
        capacity -= stores.pop().pages
        refs = refs[: capacity + 1]
    free = stack[:top]
    free = free[free <= capacity]
    stack = np.zeros(capacity, np.int32)
    stack[: len(free)] = free
    return dataclasses.replace(
        pool,
        stores=tuple(stores),
        refs=pool.refs[: capacity + 1],
        stack=jnp.asarray(stack),
        top=jnp.int32(len(free)),
    )
