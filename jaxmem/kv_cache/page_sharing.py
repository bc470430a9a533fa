"""An empty row begins with tokens that the pool holds: whole pages by reference, a part by copy.

A page that several rows have is never written: a row writes only in its last page, and a last page
that is not full is copied first (copy on write). In a pool of codes that copy is in floats, and
what was encoded already is decoded: only a beginning of whole pages is exact.
"""

import jax
import jax.numpy as jnp
from jax import Array

from ..core.arguments import takes
from .encoded_pages import decode_pages
from .page_allocator import hold, reserve
from .page_blobs import put, take, with_row, with_tails
from .page_pool import COUNT, NUMBERS, PagePool


@takes(src=COUNT, dst=COUNT, tokens=COUNT)
@jax.jit
def share(
    pool: PagePool, src: Array | int, dst: Array | int, tokens: Array | int
) -> tuple[PagePool, Array]:
    """(the pool whose row `dst` begins with the first `tokens` tokens of row `src`, whether so).

    `dst` goes on at position `tokens`. If it is not empty, if `src` has fewer tokens or has let go
    of some of these pages, or if no page is free for the copy of a part, nothing changes.

    Args:
        pool: the pool.
        src: a row.
        dst: another row, which is empty.
        tokens: how many tokens.

    Returns:
        the pool, and a bool ().

    Example:
        >>> import dataclasses, jaxmem as jm
        >>> from jaxmem.architectures import llama
        >>> sizes = dict(vocab=64, width=32, ffn=48, layers=2, heads=4, kv_heads=2, head_dim=8)
        >>> pool = jm.Pages(size=8).empty(llama.Config(**sizes), pages=4, rows=2, most=4)
        >>> pool, _ = jm.pages.alloc(pool, jnp.array([20, 0]))
        >>> pool = dataclasses.replace(pool, length=pool.room)  # as if 20 tokens had been read
        >>> pool, ok = jm.pages.share(pool, 0, 1, 18)
        >>> bool(ok), pool.table.tolist()
        (True, [[1, 2, 3, 0], [1, 2, 4, 0]])
    """
    src, dst, tokens = (jnp.asarray(x).astype(jnp.int32) for x in (src, dst, tokens))
    ok = pool.is_row(src) & (src != dst) & (tokens <= pool.length[src])
    return _begin(pool, dst, pool.table[src], tokens, ok, src)


@takes(row=COUNT, ids=NUMBERS, tokens=COUNT)
@jax.jit
def attach(
    pool: PagePool, row: Array | int, ids: Array, tokens: Array | int
) -> tuple[PagePool, Array]:
    """(the pool whose row `row` begins with the `tokens` tokens of pages `ids`, whether so).

    A cache of prefixes gives a row its pages so. If the row is not empty, if a page is free or
    missing, or if no page is free for the copy of a part, nothing changes.

    Args:
        pool: the pool.
        row: an empty row.
        ids: (n,) pages in order; as many as `tokens` take are read.
        tokens: how many tokens.

    Returns:
        the pool, and a bool ().

    Example:
        >>> import jaxmem as jm
        >>> from jaxmem.architectures import llama
        >>> sizes = dict(vocab=64, width=32, ffn=48, layers=2, heads=4, kv_heads=2, head_dim=8)
        >>> pool = jm.Pages(size=8).empty(llama.Config(**sizes), pages=4, rows=1, most=4)
        >>> pool, ids, _ = jm.pages.reserve(pool, 2, most=4)
        >>> pool, ok = jm.pages.attach(pool, 0, ids, 16)
        >>> bool(ok), pool.table.tolist(), pool.refs.tolist(), pool.length.tolist()
        (True, [[1, 2, 0, 0]], [0, 2, 2, 0, 0], [16])
    """
    ids = jnp.asarray(ids).astype(jnp.int32)[: pool.most]
    ids = jnp.pad(ids, (0, pool.most - ids.size))
    return _begin(pool, row, ids, tokens, jnp.bool_(True), None)


def _begin(
    pool: PagePool, row: Array, ids: Array, tokens: Array, ok: Array, src: Array | None
) -> tuple[PagePool, Array]:
    """`attach` of pages `ids` (most,), those of row `src` if it is not None, if `ok`."""
    if pool.states:
        raise NotImplementedError(
            "a row begins with pages of a model with recurrent layers, whose states after them are "
            "in no page; read its tokens"
        )
    row, tokens = (jnp.asarray(x).astype(jnp.int32) for x in (row, tokens))
    ok, row = ok & pool.is_row(row), jnp.clip(row, 0, pool.rows - 1)
    column = jnp.arange(pool.most, dtype=jnp.int32)
    used = column < pool.pages_of(tokens)
    before = tokens // pool.size * len(pool.groups)  # columns of whole pages
    whole = column < before
    is_held = (ids > 0) & (ids <= pool.capacity) & (pool.refs[jnp.clip(ids, 0, pool.capacity)] > 0)
    ok = ok & (pool.room[row] == 0)
    ok = ok & (tokens >= 0) & (tokens <= pool.limit)
    ok = ok & (is_held | ~used).all()

    # a part of a page is copied into a page of the row's own
    has_part = tokens % pool.size > 0
    parts = len(pool.groups)
    taken, new, enough = reserve(pool, jnp.where(ok & has_part, parts, 0), most=parts)
    ok = ok & enough
    last = jnp.minimum(before + jnp.arange(parts, dtype=jnp.int32), pool.most - 1)
    part = take(taken, jnp.where(ok & has_part, ids[last], 0))
    pool = put(taken, new, part)
    if pool.tails:
        group, place = pool.groups.places
        tails = decode_pages(jax.tree.map(lambda x: x[place, group], part), pool.options.bits)
        tails = (jnp.concatenate(tails, -1),) if pool.beside else tails
        if src is not None:
            is_tail = pool.length[src] // pool.size == tokens // pool.size
            pick = lambda tail, x: jnp.where(is_tail, tail[:, src], x.astype(tail.dtype))
            tails = tuple(map(pick, pool.tails, tails))
        pool = with_tails(pool, row, tails, ok)

    whole = whole & ok
    pool = hold(pool, jnp.where(whole, ids, 0))
    copies = new[jnp.clip(column - before, 0, parts - 1)]
    entries = jnp.where(whole, ids, jnp.where(used & ok, copies, 0))
    return with_row(pool, row, entries, tokens, ok), ok
