"""New tokens join the unfinished page of their row, in floats; a page that is full is encoded."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array, lax

from .encoded_pages import encode_pages
from .page_pool import PagePool
from .page_writes import local_pages
from .paged_rows import PagedRows


def write_encoded(
    pool: PagePool, layer: Array, place: Array, where: PagedRows, k: Array, v: Array
) -> tuple[PagePool, tuple[Array, ...]]:
    """(the pool with k, v (B, K, T, h), keys and values in floats from a page's start).

    The second are arrays (B, K, S, w): for each row the tokens of the page that was not full
    before, then the new ones. Keys and values are in one array if they are `beside` each other.

    Args:
        pool: the pool, of codes.
        layer: which layer, an integer.
        place: its place in pages.
        where: the rows, with the table of the layer's group.
        k: keys (B, K, T, h).
        v: values (B, K, T, h).
    """
    size, steps = pool.size, k.shape[2]
    new = (jnp.concatenate([k, v], -1),) if pool.beside else (k, v)
    pages = (size - 1 + steps + size - 1) // size  # that T tokens may touch
    tails, recent = [], []
    join = _join_token if steps == 1 else _join_chunk
    for old, x in zip(pool.tails, new):
        tail, joined = join(old, layer, where, x.astype(old.dtype), pages)
        tails.append(tail)
        recent.append(joined)
    pool = dataclasses.replace(pool, tails=tuple(tails))
    pool = _put_full(pool, layer, place, where, tuple(recent), pages)
    return pool, tuple(recent)


def _join_token(tail, layer, where, x, pages):
    """A tail (L, rows + 1, K, P, w) with x (B, K, 1, w), and its rows (B, K, P, w)."""
    slots = where.starts % tail.shape[3]
    for row in range(len(slots)):
        start = (layer, where.numbers[row], 0, slots[row], 0)
        tail = lax.dynamic_update_slice(tail, x[None, row : row + 1], start)
    return tail, _rows_of(tail, layer, where)


def _join_chunk(tail, layer, where, x, pages):
    """A tail with the last of x (B, K, T, w), and its rows with x: (B, K, pages * P, w)."""
    size = tail.shape[3]
    inside = (where.starts % size)[:, None]
    token = jnp.arange(pages * size, dtype=jnp.int32)[None] - inside  # (B, S)
    is_new = (token >= 0) & (token < where.counts[:, None])
    place = jnp.clip(token, 0, x.shape[2] - 1)[:, None, :, None]
    old = jnp.pad(_rows_of(tail, layer, where), ((0, 0), (0, 0), (0, (pages - 1) * size), (0, 0)))
    joined = jnp.where(is_new[:, None, :, None], jnp.take_along_axis(x, place, axis=2), old)
    # the page in which the next token will be, or the first one if no token came
    column = jnp.where(where.counts > 0, where.ends // size - where.starts // size, 0)
    start = jnp.minimum(column, pages - 1) * size
    for row in range(len(start)):
        last = lax.dynamic_slice_in_dim(joined[row : row + 1], start[row], size, 2)
        at = (layer, where.numbers[row], 0, 0, 0)
        tail = lax.dynamic_update_slice(tail, last[None], at)
    return tail, joined


def _rows_of(tail, layer, where):
    """The rows (B, K, P, w) of a tail (L, rows + 1, K, P, w)."""
    rows = lax.dynamic_index_in_dim(tail, layer, 0, keepdims=False)
    return rows[: tail.shape[1] - 1] if where.is_whole else rows[where.numbers]


def _put_full(
    pool: PagePool,
    layer: Array,
    place: Array,
    where: PagedRows,
    recent: tuple[Array, ...],
    pages: int,
) -> PagePool:
    """The pool with those of the pages of `recent` (B, K, pages * P, w) that are full now.

    The loop runs once for each of them, so that most steps of generation encode nothing.
    """
    size = pool.size
    column = where.starts[:, None] // size + jnp.arange(pages, dtype=jnp.int32)[None]
    is_full = (column + 1) * size <= where.ends[:, None]
    most = where.table.shape[1]
    page = jnp.take_along_axis(where.table, jnp.minimum(column, most - 1), axis=1)
    page = jnp.where(column < most, page, 0).reshape(-1)
    order = jnp.argsort(jnp.where(is_full, 0, 1).reshape(-1), stable=True)

    def write(i, stores):
        row, number = order[i] // pages, order[i] % pages
        if pages == 1:  # all of it is in the tails, which are read where they are
            at = (layer, where.numbers[row], 0, 0, 0)
            parts = [lax.dynamic_slice(x, at, (1, 1, *x.shape[2:]))[0, 0] for x in pool.tails]
        else:
            at = (row, 0, number * size, 0)
            sizes = lambda x: (1, x.shape[1], size, x.shape[3])
            parts = [lax.dynamic_slice(x, at, sizes(x))[0] for x in recent]
        # the ranges and the codes read one copy: without this XLA for TPU slices a tail three times
        parts = lax.optimization_barrier(parts)
        keys, values = jnp.split(parts[0], 2, -1) if pool.beside else parts
        encoded = encode_pages(keys, values, pool.options.bits, pool.beside)
        first, written = 0, []
        for store in stores:
            to = local_pages(store, first)(page[order[i]])
            put = lambda a, x, to=to: lax.dynamic_update_slice(
                a, x[None, None], (place, to, *(0,) * x.ndim)
            )
            written.append(jax.tree.map(put, store, encoded))
            first += store.pages
        return tuple(written)

    stores = lax.fori_loop(0, is_full.sum(dtype=jnp.int32), write, pool.stores)
    return dataclasses.replace(pool, stores=stores)
