"""Who has which page: taken from a stack of free pages, and back on it at its last reference.

Always: free pages = capacity − pages with a reference, and a page's count = its entries in the
table + how often it is held.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..core.arguments import POSITIVE, takes
from .page_pool import COUNT, NUMBERS, ROWS, PagePool


@takes(tokens=ROWS)
@jax.jit
def alloc(pool: PagePool, tokens: Array) -> tuple[PagePool, Array]:
    """(the pool with room for more tokens in each row, which rows got it).

    A row gets all the pages that it wants, or none and keeps what it has; the first rows choose
    first. A row that asks for nothing gets it. Refused are fewer than 0 tokens and more than
    `pool.limit` in a row.

    Args:
        pool: the pool.
        tokens: (rows,) integers or bools, how many tokens more than `pool.room`.

    Returns:
        the pool, and (rows,) bool.

    Raises:
        ValueError: `tokens` is not of the shape (rows,).

    Example:
        >>> import jaxmem as jm
        >>> from jaxmem.architectures import llama
        >>> sizes = dict(vocab=64, width=32, ffn=48, layers=2, heads=4, kv_heads=2, head_dim=8)
        >>> pool = jm.Pages(size=8).empty(llama.Config(**sizes), pages=4, rows=3, most=4)
        >>> pool, ok = jm.pages.alloc(pool, jnp.array([17, 9, 8]))  # 3, 2 and 1 pages
        >>> ok.tolist(), pool.room.tolist(), int(pool.top)
        ([True, False, True], [17, 0, 8], 0)
    """
    tokens = jnp.asarray(tokens).astype(jnp.int32)
    if tokens.shape != pool.room.shape:
        raise ValueError(f"tokens have the shape {tokens.shape}, expected {pool.room.shape}")
    fits = (tokens >= 0) & (tokens <= pool.limit - pool.room)
    room = jnp.where(fits, pool.room + tokens, pool.room)
    have = pool.pages_of(pool.room)
    need = pool.pages_of(room) - have

    def choose(left, row):
        fits, need = row
        ok = fits & (need <= left)
        return left - jnp.where(ok, need, 0), ok

    left, ok = lax.scan(choose, pool.top, (fits, need))
    need = jnp.where(ok, need, 0)

    def assign(table, refs):
        first = jnp.cumsum(need) - need
        column = jnp.arange(pool.most, dtype=jnp.int32)[None]
        is_new = (column >= have[:, None]) & (column < (have + need)[:, None])
        place = pool.top - 1 - (first[:, None] + column - have[:, None])
        page = jnp.take(pool.stack, place, mode="clip")
        refs = refs.at[jnp.where(is_new, page, refs.size)].add(1, mode="drop")
        return jnp.where(is_new, page, table), refs

    # most steps of generation want no page at all
    table, refs = lax.cond(left < pool.top, assign, lambda *same: same, pool.table, pool.refs)
    room = jnp.where(ok, room, pool.room)
    return dataclasses.replace(pool, table=table, refs=refs, room=room, top=left), ok


@takes(rows=ROWS)
@jax.jit
def release(pool: PagePool, rows: Array) -> PagePool:
    """The pool without what some rows hold: they are empty then.

    A page is free when its last reference goes. A row that is empty already stays so.

    Args:
        pool: the pool.
        rows: which rows: (rows,) bool, or numbers of rows (n,).

    Raises:
        ValueError: a mask that is not of the shape (rows,).

    Example:
        >>> import jaxmem as jm
        >>> from jaxmem.architectures import llama
        >>> sizes = dict(vocab=64, width=32, ffn=48, layers=2, heads=4, kv_heads=2, head_dim=8)
        >>> pool = jm.Pages(size=8).empty(llama.Config(**sizes), pages=4, rows=3, most=4)
        >>> pool, _ = jm.pages.alloc(pool, jnp.array([17, 0, 8]))
        >>> [int(jm.pages.release(pool, jnp.array(rows)).top) for rows in ([0], [0, 0], [0, 2])]
        [3, 3, 4]
    """
    gone = _row_mask(pool, rows)
    ids = jnp.where(gone[:, None], pool.table, 0)
    pool = drop(pool, ids.reshape(-1))
    empty = lambda x: jnp.where(gone, 0, x)
    table = jnp.where(gone[:, None], 0, pool.table)
    return dataclasses.replace(pool, table=table, length=empty(pool.length), room=empty(pool.room))


@takes(ids=NUMBERS)
@jax.jit
def hold(pool: PagePool, ids: Array) -> PagePool:
    """The pool with one more reference to each page of `ids` (n,), so that they outlive their row.

    A cache of prefixes holds pages so. Page 0 and free pages cannot be held: they stay as they are.

    Example:
        >>> import jaxmem as jm
        >>> from jaxmem.architectures import llama
        >>> sizes = dict(vocab=64, width=32, ffn=48, layers=2, heads=4, kv_heads=2, head_dim=8)
        >>> pool = jm.Pages(size=8).empty(llama.Config(**sizes), pages=4, rows=1, most=4)
        >>> pool, _ = jm.pages.alloc(pool, jnp.array([16]))
        >>> first = pool.table[0, :1]
        >>> pool = jm.pages.release(jm.pages.hold(pool, first), jnp.array([0]))
        >>> int(pool.top), int(jm.pages.drop(pool, first).top)
        (3, 4)
    """
    more = _counts(pool, ids)
    refs = jnp.where(pool.refs > 0, pool.refs + more, pool.refs)
    return dataclasses.replace(pool, refs=refs)


@takes(ids=NUMBERS)
@jax.jit
def drop(pool: PagePool, ids: Array) -> PagePool:
    """The pool with one reference less to each page of `ids` (n,); it undoes `hold`.

    A page without references is free. Page 0 and free pages stay as they are.

    Example:
        >>> import jaxmem as jm
        >>> from jaxmem.architectures import llama
        >>> sizes = dict(vocab=64, width=32, ffn=48, layers=2, heads=4, kv_heads=2, head_dim=8)
        >>> pool = jm.Pages(size=8).empty(llama.Config(**sizes), pages=4, rows=1, most=4)
        >>> pool, ids, ok = jm.pages.reserve(pool, 2, most=3)
        >>> int(pool.top), int(jm.pages.drop(pool, ids).top)
        (2, 4)
    """
    ids = jnp.asarray(ids, jnp.int32)

    def put_back(refs, stack):
        less = jnp.minimum(_counts(pool, ids), refs)
        refs = refs - less
        freed = (less > 0) & (refs == 0)
        rank = jnp.cumsum(freed.astype(jnp.int32)) - 1
        place = jnp.where(freed, pool.top + rank, stack.size)
        page = jnp.arange(refs.size, dtype=jnp.int32)
        return refs, stack.at[place].set(page, mode="drop"), pool.top + rank[-1] + 1

    nothing = lambda refs, stack: (refs, stack, pool.top)
    refs, stack, top = lax.cond((ids > 0).any(), put_back, nothing, pool.refs, pool.stack)
    return dataclasses.replace(pool, refs=refs, stack=stack, top=top)


@takes(count=COUNT, most=POSITIVE)
@functools.partial(jax.jit, static_argnames="most")
def reserve(pool: PagePool, count: Array | int, *, most: int) -> tuple[PagePool, Array, Array]:
    """(the pool, `count` free pages that are held once, whether there were so many).

    They belong to no row: `put` fills them, `attach` gives them to a row, `drop` frees them.

    Args:
        pool: the pool.
        count: how many pages, at most `most`.
        most: the length of the result, which is filled with 0.

    Returns:
        the pool, page numbers (most,), and whether they were taken; if not, nothing has changed.

    Example:
        >>> import jaxmem as jm
        >>> from jaxmem.architectures import llama
        >>> sizes = dict(vocab=64, width=32, ffn=48, layers=2, heads=4, kv_heads=2, head_dim=8)
        >>> pool = jm.Pages(size=8).empty(llama.Config(**sizes), pages=4, rows=1, most=4)
        >>> pool, ids, ok = jm.pages.reserve(pool, 2, most=3)
        >>> ids.tolist(), bool(ok), bool(jm.pages.reserve(pool, 3, most=3)[2])
        ([1, 2, 0], True, False)
    """
    count = jnp.asarray(count, jnp.int32)
    ok = (count >= 0) & (count <= jnp.minimum(most, pool.top))
    count = jnp.where(ok, count, 0)
    index = jnp.arange(most, dtype=jnp.int32)
    taken = index < count
    ids = jnp.where(taken, jnp.take(pool.stack, pool.top - 1 - index, mode="clip"), 0)
    refs = pool.refs + _counts(pool, ids)
    return dataclasses.replace(pool, refs=refs, top=pool.top - count), ids, ok


def _counts(pool: PagePool, ids: Array) -> Array:
    """How often each page is in `ids` (n,); 0 for page 0, and what is no page is not counted."""
    ids = jnp.asarray(ids, jnp.int32)
    ids = jnp.where(ids > 0, ids, pool.refs.size)
    return jnp.zeros_like(pool.refs).at[ids].add(1, mode="drop")


def _row_mask(pool: PagePool, rows: Array) -> Array:
    """Rows as a mask (rows,), of a mask or of numbers of rows."""
    rows = jnp.asarray(rows)
    if rows.dtype != jnp.bool_:
        rows = jnp.where(rows < 0, pool.rows, rows)  # a negative number is no row
        return jnp.zeros(pool.rows, jnp.bool_).at[rows.reshape(-1)].set(True, mode="drop")
    if rows.shape != pool.room.shape:
        raise ValueError(f"rows have the shape {rows.shape}, expected {pool.room.shape}")
    return rows
