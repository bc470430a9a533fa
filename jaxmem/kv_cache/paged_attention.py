"""softmax(scale · q kᵀ) v over pages, a page of every row at a time: m, Σ eˢ⁻ᵐ and Σ eˢ⁻ᵐ v.

The running maximum and sums are in f32 (Milakov and Gimelshein, 2018, online softmax). The loop
ends with the longest row, so that a step reads the pages in use. What a row gets depends on its own
tokens alone, bit for bit: a page that it does not have changes none of its sums.
"""

import jax.numpy as jnp
from jax import Array, lax

from .attention_scores import PLAIN, ScoreTerms, by_head, changed_scores
from .page_pool import PagePool
from .page_writes import local_pages
from .paged_rows import PagedRows


def attend_pages(
    pool: PagePool,
    layer: Array,
    where: PagedRows,
    q: Array,
    window: Array | int,
    scale: float,
    terms: ScoreTerms = PLAIN,
) -> Array:
    """Attention of q (B, H, T, h) over the pages of its rows: (B, H, T, h).

    Args:
        pool: holds the keys and values of the T tokens already.
        layer: which layer, an integer.
        where: the rows, and where their new tokens are.
        q: queries.
        window: tokens that a query sees, itself included; or (B, 1, 1, T, 1), for each query.
        scale: factor of the scores before `terms`.
        terms: what else changes a score; no bias.
    """
    batch, heads, steps, width = q.shape
    size, (kv_heads, _) = pool.size, pool.heads
    rows = q.reshape(batch, kv_heads, -1, width)  # (B, K, G*T, h)
    if single := rows.shape[2] == 1:  # see attend_by
        rows = jnp.broadcast_to(rows, (batch, kv_heads, 2, width))
    if beside := pool.stores[0].values is None:  # q‖0 · k‖v = q · k
        rows = jnp.pad(rows, ((0, 0), (0, 0), (0, 0), (0, width)))

    position = where.positions(steps)[:, None, None, :, None]  # (B, 1, 1, T, 1)
    ends = where.ends
    seen = jnp.where(ends > 0, (position - window + 1).min((1, 2, 3, 4)), ends)  # first seen token
    shape = (*rows.shape[:3], 1)
    lowest = jnp.finfo(jnp.float32).min

    def add(column, state):
        most, total, out = state
        first = column * size
        token = first + jnp.arange(size, dtype=jnp.int32)
        is_there = token[None] < ends[:, None]  # (B, P)
        pages = lax.dynamic_index_in_dim(where.table, column, 1, keepdims=False)
        keys, values = _page(pool, layer, pages, is_there)

        scores = _dot(rows, keys, 3)  # (B, K, R, P)
        scores = scores.reshape(batch, kv_heads, -1, steps, size) * scale
        distance = position - token[None, None, None, None]
        scores = changed_scores(scores, terms, distance)
        allowed = (distance >= 0) & (distance < window) & is_there[:, None, None, None]
        scores = jnp.where(allowed, scores, lowest)

        new_most = jnp.maximum(most, scores.max(-1).reshape(shape))
        shares = jnp.exp(scores - new_most.reshape(*scores.shape[:-1], 1))
        shares = jnp.where(allowed, shares, 0.0).reshape(*shape[:3], size)
        rest = jnp.exp(most - new_most)
        new_total = total * rest + shares.sum(-1, keepdims=True)
        new_out = out * rest + _dot(shares.astype(values.dtype), values, 2)
        has = ((first < ends) & (first + size > seen))[:, None, None, None]
        keep = lambda new, old: jnp.where(has, new, old)
        return keep(new_most, most), keep(new_total, total), keep(new_out, out)

    empty = jnp.full(shape, lowest), jnp.zeros(shape), jnp.zeros((*shape[:3], rows.shape[-1]))
    last = (ends.max() + size - 1) // size
    begin = jnp.maximum(jnp.where(ends > 0, seen, ends.max()).min(), 0) // size
    most, total, out = lax.fori_loop(begin, last, add, empty)

    if terms.sinks is not None:
        sinks = by_head(terms.sinks, kv_heads)  # (1, K, G, 1, 1)
        sinks = jnp.broadcast_to(sinks, (1, kv_heads, shape[2] // steps, steps, 1))
        sinks = sinks.reshape(1, *shape[1:])
        new_most = jnp.maximum(most, sinks)
        rest = jnp.exp(most - new_most)
        total, out = total * rest + jnp.exp(sinks - new_most), out * rest
    out = out[..., width:] if beside else out
    out = jnp.where(total > 0, out / jnp.where(total > 0, total, 1.0), 0.0)
    out = out[:, :, :1] if single else out
    return out.astype(q.dtype).reshape(batch, heads, steps, width)


def _page(pool: PagePool, layer: Array, pages: Array, is_there: Array) -> tuple[Array, Array]:
    """Keys and values (B, K, P, w) of a page of each row; 0 where there is no token.

    A free slot holds what another row left, which may be no number at all.
    """
    first, found = 0, None
    for store in pool.stores:
        local = local_pages(store, first)(pages)
        arrays = [a[layer, local] for a in (store.keys, store.values) if a is not None]
        if found is None:
            found = arrays
        else:
            is_here = (local > 0)[:, None, None, None]
            found = [jnp.where(is_here, new, old) for new, old in zip(arrays, found)]
        first += store.pages
    there = is_there[:, None, :, None]
    found = [jnp.where(there, x, 0) for x in found]
    return found[0], found[-1]


def _dot(x: Array, y: Array, axis: int) -> Array:
    """x (B, K, R, c) times y (B, K, ...) over `axis` of y, in f32."""
    dims = (((3,), (axis,)), ((0, 1), (0, 1)))
    return lax.dot_general(x, y.astype(x.dtype), dims, preferred_element_type=jnp.float32)
