"""softmax(scale · q kᵀ) v over pages: a page of every row at a time, and then the newest tokens.

The loop ends with the longest row, so that a step reads the pages in use. What a row gets depends
on its own tokens alone, bit for bit: a page that it does not have changes none of its sums.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..core.hadamard import hadamard
from ..cpu_kernels.attended_pages import attended_pages
from .attention_scores import PLAIN, ScoreTerms, per_head_product
from .encoded_page_writes import write_encoded
from .encoded_pages import split_ranges, unpacked_codes
from .head_rotation import rotated_heads
from .online_softmax import Queries, SoftmaxSums, chosen
from .page_pool import PagePool, PageStore
from .page_writes import local_pages, write_pages
from .paged_rows import PagedRows


def attend_through_pages(
    pool: PagePool,
    layer: Array,
    where: PagedRows,
    q: Array,
    k: Array,
    v: Array,
    window: Array | int,
    scale: float,
    terms: ScoreTerms = PLAIN,
) -> tuple[PagePool, Array]:
    """(the pool with new keys and values, attention of q (B, H, T, h) over its rows).

    Args:
        pool: the pool.
        layer: which layer, an integer.
        where: the rows, and where their new tokens are.
        q: queries (B, H, T, h).
        k: keys (B, K, T, h), K dividing H.
        v: values (B, K, T, h).
        window: tokens that a query sees, itself included; or (B, 1, 1, T, 1), for each query.
        scale: factor of the scores before `terms`.
        terms: what else changes a score; no bias.

    Raises:
        ValueError: the pool is for other heads.
    """
    if pool.heads != (k.shape[1], k.shape[3]):
        raise ValueError(
            f"a pool for {pool.heads[0]} heads of width {pool.heads[1]}, and keys of {k.shape[1]} "
            f"heads of width {k.shape[3]}: make it with the model's config"
        )
    group, place = pool.groups.place(layer)
    where = where.of_group(group, len(pool.groups))
    if pool.options.bits is None:
        pool = write_pages(pool, place, where, k, v)
        return pool, _attend_floats(pool, place, where, q, window, scale, terms)
    rotation = hadamard(k.shape[-1]) if pool.options.rotate else None
    q, k, v = (rotated_heads(x, rotation) for x in (q, k, v))
    pool, recent = write_encoded(pool, layer, place, where, k, v)
    y = _attend(pool, place, where, recent, q, window, scale, terms)
    return pool, rotated_heads(y, None if rotation is None else rotation.T)


def attend_to_latents(
    pool: PagePool,
    layer: Array,
    where: PagedRows,
    q: Array,
    k_rope: Array,
    latent: Array,
    window: Array | int,
    scale: float,
) -> tuple[PagePool, Array]:
    """(the pool with new latents, the means (B, H, T, n) of its rows' latents by attention of q).

    Args:
        pool: a pool of latents.
        layer: which layer, an integer.
        where: the rows, and where their new tokens are.
        q: queries (B, H, T, r + n), of rotary keys and of latents.
        k_rope: rotary keys (B, 1, T, r).
        latent: latents (B, 1, T, n), which are keys and values of all heads.
        window: as of `attend_through_pages`.
        scale: factor of the scores.

    Raises:
        ValueError: the pool is of heads, or of other latents.
    """
    if not pool.is_latent or pool.heads[1] != q.shape[3]:
        raise ValueError(
            f"a pool for vectors of {pool.heads[1]} numbers, and latents with rotary keys of "
            f"{q.shape[3]}: make it with the model's config"
        )
    group, place = pool.groups.place(layer)
    where = where.of_group(group, len(pool.groups))
    pool = write_pages(pool, place, where, k_rope, latent)
    y = _attend(pool, place, where, None, q, window, scale, PLAIN)
    return pool, y[..., k_rope.shape[3] :]


def _attend_floats(
    pool: PagePool,
    layer: Array,
    where: PagedRows,
    q: Array,
    window: Array | int,
    scale: float,
    terms: ScoreTerms,
) -> Array:
    """Attention of q (B, H, T, h) over pages of floats; compiled, of one token a row, on a CPU."""
    shell = jax.tree.map(lambda _: None, pool)  # what is static of it
    beside = pool.beside

    def by_xla(q, table, ends, layer, window, *arrays):
        there = jnp.minimum(ends, 1)
        rows = PagedRows(ends, ends - there, there, table, where.is_whole)
        parts = [(a, None) for a in arrays] if beside else zip(arrays[::2], arrays[1::2])
        pages = dataclasses.replace(shell, stores=tuple(PageStore(*part) for part in parts))
        return _attend(pages, layer, rows, None, q, window, scale, terms)

    arrays = jax.tree.leaves(pool.stores)
    is_f32 = {q.dtype, arrays[0].dtype} == {jnp.dtype(jnp.float32)}
    is_one = q.shape[2] == 1 and pool.options.window is None
    if not (is_f32 and is_one and terms.is_plain and jnp.ndim(window) == 0):
        return _attend(pool, layer, where, None, q, window, scale, terms)
    args = q, where.table, where.ends, layer, window, *arrays
    return attended_pages(*args, beside=beside, scale=scale, otherwise=by_xla)


def _attend(
    pool: PagePool,
    layer: Array,
    where: PagedRows,
    recent: tuple[Array, ...] | None,
    q: Array,
    window: Array | int,
    scale: float,
    terms: ScoreTerms,
) -> Array:
    """Attention of q (B, H, T, h): over all pages, or over the full ones and then over `recent`.

    `recent` are keys and values (B, K, S, w) in floats, from the first token of the page that was
    not full before.
    """
    batch, heads, steps, width = q.shape
    size, (kv_heads, _) = pool.size, pool.heads
    rows = q.reshape(batch, kv_heads, -1, width)  # (B, K, G*T, h)
    if single := rows.shape[2] == 1:  # see attend_by
        rows = jnp.broadcast_to(rows, (batch, kv_heads, 2, width))
    beside = pool.beside  # q‖0 · k‖v = q · k
    rows = jnp.pad(rows, ((0, 0), (0, 0), (0, 0), (0, width))) if beside else rows

    position = where.positions(steps)[:, None, None, :, None]  # (B, 1, 1, T, 1)
    near, sinks = pool.options.window, pool.options.sinks
    queries = Queries(position, window, scale, terms, near, sinks)
    ends = where.ends if recent is None else where.starts // size * size
    ends = jnp.where(where.counts > 0, ends, 0)
    reach = window if near is None else jnp.minimum(window, near)
    first_seen = (position - reach + 1).min((1, 2, 3, 4))  # by any query of a row
    first_seen = jnp.where(ends > 0, jnp.minimum(first_seen, ends), ends.max())
    read = _read_floats if recent is None else _read_codes

    # Pages of sinks come first, then those from the first one that any window reaches.
    of_sinks = -(-sinks // size)
    begin = jnp.maximum(jnp.maximum(first_seen.min(), 0) // size, of_sinks)
    last = (ends.max() + size - 1) // size

    def add(i, sums):
        column = jnp.where(i < of_sinks, i, i - of_sinks + begin)
        token = column * size + jnp.arange(size, dtype=jnp.int32)
        is_there = token[None] < ends[:, None]  # (B, P)
        pages = lax.dynamic_index_in_dim(where.table, column, 1, keepdims=False)
        page = _page(pool, layer, pages)
        products, mix = read(page, rows, is_there, pool.options.bits)
        more = queries.add(sums, products, mix, token[None], is_there)
        is_seen = (token[-1] >= first_seen) | (token[0] < sinks)
        return chosen((token[0] < ends) & is_seen, more, sums)

    sums = SoftmaxSums.empty(*rows.shape)
    columns = jnp.minimum(of_sinks, last) + jnp.maximum(last - begin, 0)
    sums = lax.fori_loop(0, columns, add, sums)
    if recent is not None:
        token = ends[:, None] + jnp.arange(recent[0].shape[2], dtype=jnp.int32)[None]
        is_there = token < where.ends[:, None]
        page = PageStore(recent[0], recent[1] if len(recent) > 1 else None)
        products, mix = _read_floats(page, rows, is_there)
        sums = queries.add(sums, products, mix, token, is_there)
    out = queries.add_sinks(sums).result()
    out = out[..., width:] if beside else out
    out = out[:, :, :1] if single else out
    return out.astype(q.dtype).reshape(batch, heads, steps, width)


def _page(pool: PagePool, layer: Array, pages: Array) -> PageStore:
    """A page of each row (B,): arrays (B, K, ...)."""
    first, found = 0, None
    for store in pool.stores:
        local = local_pages(store, first)(pages)
        part = jax.tree.map(lambda a: a[layer, local], store)  # noqa: B023

        def newer(new, old, is_here=local > 0):
            return jnp.where(is_here.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

        found = part if found is None else jax.tree.map(newer, part, found)
        first += store.pages
    return found


def _read_floats(page: PageStore, rows: Array, is_there: Array, bits: Any = None):
    """Products (B, K, R, P) of rows and the keys of a page of floats, and what sums its values.

    A slot without a token counts as 0: it holds what another row left, which may be no number.
    """
    clean = lambda x: jnp.where(is_there[:, None, :, None], x, 0)
    keys = clean(page.keys)
    values = keys if page.values is None else clean(page.values)
    return per_head_product(rows, keys, 3), lambda shares: per_head_product(
        shares.astype(values.dtype), values, 2
    )


def _read_codes(page: PageStore, rows: Array, is_there: Array, bits: int):
    """The same of a page of codes, which is full: codes are multiplied, and no page is decoded."""
    key_step, key_low, value_step, value_low = (x[:, :, None] for x in split_ranges(page))
    dtype, width = rows.dtype, key_step.shape[-1]
    codes = lambda packed: unpacked_codes(packed, bits).astype(dtype)
    keys = codes(page.keys)
    values = keys if page.values is None else codes(page.values)
    q = rows[..., :width].astype(jnp.float32)
    scaled = (q * key_step).astype(dtype)
    scaled = jnp.pad(scaled, ((0, 0), (0, 0), (0, 0), (0, rows.shape[-1] - width)))
    low = (q * key_low).sum(-1, keepdims=True)  # (B, K, R, 1)
    products = per_head_product(scaled, keys, 3) + low

    def mix(shares):
        parts = (shares * value_step).astype(dtype)
        low = (shares * value_low).sum(-1, keepdims=True)
        return per_head_product(parts, values, 2) + low

    return products, mix
