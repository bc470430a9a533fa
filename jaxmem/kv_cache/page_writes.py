"""page[slot] = (key, value): new tokens of rows into their pages, in place.

A single token of each row is one `dynamic_update_slice`, unrolled over rows. XLA for TPU keeps the
pool where it is then; a scatter moves 37 times the bytes (v5e, jax 0.10.2).
"""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
from jax import Array, lax

from .page_pool import PagePool, PageStore
from .paged_rows import PagedRows


def write_pages(pool: PagePool, layer: Array, where: PagedRows, k: Array, v: Array) -> PagePool:
    """The pool with the keys and values k, v (B, K, T, h) of a layer where `where` says.

    Of latents, `k` are their rotary keys, and `v` the latents.
    """
    is_one = pool.beside or pool.is_latent
    new = (jnp.concatenate([k, v], -1),) if is_one else (k, v)
    put = _put_token if k.shape[2] == 1 else _put_chunk
    first, stores = 0, []
    for store in pool.stores:
        arrays = (store.keys, store.values)[: len(new)]
        arrays = put(arrays, layer, where, new, local_pages(store, first))
        stores.append(PageStore(*arrays, *(None,) * (2 - len(new))))
        first += store.pages
    return dataclasses.replace(pool, stores=tuple(stores))


def local_pages(store: PageStore, first: int) -> Callable[[Array], Array]:
    """Numbers of pages in the pool -> numbers in an extent after `first` pages; 0 for others."""

    def local(page):
        page = page - first
        return jnp.where((page > 0) & (page <= store.pages), page, 0)

    return local


def _put_token(arrays, layer, where, new, local):
    """Arrays (L, N, K, P, w) with one token of each row, of `new` (B, K, 1, w)."""
    size = arrays[0].shape[3]
    pages = local(jnp.where(where.counts > 0, where.pages(where.starts // size), 0))
    slots = where.starts % size
    for row in range(len(pages)):
        start = (layer, pages[row], 0, slots[row], 0)
        arrays = tuple(
            lax.dynamic_update_slice(a, x[None, row : row + 1].astype(a.dtype), start)
            for a, x in zip(arrays, new)
        )
    return arrays


def _put_chunk(arrays, layer, where, new, local):
    """Arrays (L, N, K, P, w) with T tokens of each row, of `new` (B, K, T, w): page by page."""
    size, steps = arrays[0].shape[3], new[0].shape[2]
    columns = (size - 1 + steps + size - 1) // size  # pages that T tokens may touch
    padding = ((0, 0), (0, 0), (size, size), (0, 0))
    new = tuple(jnp.pad(x, padding) for x in new)

    def write(i, arrays):
        row, column = i // columns, i % columns
        start, count = where.starts[row], where.counts[row]
        before = column * size - start % size  # tokens of the row before this page's first slot
        token = before + jnp.arange(size, dtype=jnp.int32)
        is_new = (token >= 0) & (token < count)
        at = start // size + column
        most = where.table.shape[1]
        page = jnp.where(at < most, where.table[row, jnp.minimum(at, most - 1)], 0)
        page = local(jnp.where(is_new.any(), page, 0))
        out = []
        for a, x in zip(arrays, new):
            _, _, heads, _, width = a.shape
            old = lax.dynamic_slice(a, (layer, page, 0, 0, 0), (1, 1, heads, size, width))
            tokens = lax.dynamic_slice(x, (row, 0, size + before, 0), (1, heads, size, width))
            tokens = tokens[None].astype(a.dtype)
            tokens = jnp.where(is_new[None, None, None, :, None], tokens, old)
            out.append(lax.dynamic_update_slice(a, tokens, (layer, page, 0, 0, 0)))
        return tuple(out)

    return lax.fori_loop(0, len(where.starts) * columns, write, arrays)
