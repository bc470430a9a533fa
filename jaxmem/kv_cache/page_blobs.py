"""What pages hold, as arrays outside the pool: to the host, to a file, and back, byte for byte."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..core.arguments import Kind, takes
from .page_allocator import reserve
from .page_pool import COUNT, NUMBERS, PagePool, PageStore
from .page_writes import local_pages

_PARTS = {"pages", "tails", "states", "has_page", "length"}
_ROW = Kind("what take_row gave", lambda x: isinstance(x, dict) and set(x) == _PARTS)


@takes(ids=NUMBERS)
@jax.jit
def take(pool: PagePool, ids: Array) -> PageStore:
    """What the pages `ids` (n,) hold, as it is stored: a pytree of arrays (L, n, K, ...).

    The pool stays as it is. `jax.device_get` brings the result to the host.

    Example:
        >>> import jaxmem as jm
        >>> from jaxmem.architectures import llama
        >>> sizes = dict(vocab=64, width=32, ffn=48, layers=2, heads=4, kv_heads=2, head_dim=8)
        >>> pool = jm.Pages(size=8).empty(llama.Config(**sizes), pages=4, rows=1, most=4)
        >>> jm.pages.take(pool, jnp.array([1, 3])).keys.shape
        (2, 2, 2, 8, 16)
    """
    ids = jnp.asarray(ids).astype(jnp.int32)
    first, found = 0, None
    for store in pool.stores:
        local = local_pages(store, first)(ids)
        part = jax.tree.map(lambda a: a[:, local], store)  # noqa: B023
        is_here = local > 0

        def chosen(new, old, is_here=is_here):
            return jnp.where(is_here.reshape(1, -1, *(1,) * (new.ndim - 2)), new, old)

        found = part if found is None else jax.tree.map(chosen, part, found)
        first += store.pages
    return found


@takes(ids=NUMBERS)
@jax.jit
def put(pool: PagePool, ids: Array, blob: PageStore) -> PagePool:
    """The pool whose pages `ids` (n,) hold what `take` gave; page 0 takes what nobody wants.

    Raises:
        ValueError: the blob is of another number of pages, or of another kind of pool.

    Example:
        >>> import jaxmem as jm
        >>> from jaxmem.architectures import llama
        >>> sizes = dict(vocab=64, width=32, ffn=48, layers=2, heads=4, kv_heads=2, head_dim=8)
        >>> pool = jm.Pages(size=8).empty(llama.Config(**sizes), pages=4, rows=1, most=4)
        >>> pool, ids, _ = jm.pages.reserve(pool, 1, most=1)
        >>> blob = jax.tree.map(jnp.ones_like, jm.pages.take(pool, ids))
        >>> float(jm.pages.put(pool, ids, blob).stores[0].keys.sum()) == 2 * 2 * 8 * 16
        True
    """
    ids = jnp.asarray(ids).astype(jnp.int32)
    expected = jax.eval_shape(take, pool, ids)
    form = lambda tree: jax.tree.map(lambda x: (x.shape, str(x.dtype)), tree)
    if form(blob) != form(expected):
        raise ValueError(f"the blob holds {form(blob)}, expected {form(expected)}")
    first, stores = 0, []
    for store in pool.stores:
        local = local_pages(store, first)(ids)

        def write(i, store, local=local):
            def one(a, x):
                x = lax.dynamic_slice_in_dim(x, i, 1, 1)
                return lax.dynamic_update_slice_in_dim(a, x, local[i], 1)

            return jax.tree.map(one, store, blob)

        stores.append(lax.fori_loop(0, len(ids), write, store))
        first += store.pages
    return dataclasses.replace(pool, stores=tuple(stores))


@takes(row=COUNT)
@jax.jit
def take_row(pool: PagePool, row: Array | int) -> dict[str, Any]:
    """All that a row holds, to be put into a pool again by `put_row`: it may be swapped out.

    The pool stays as it is; `release` frees the row's pages. What is no row gives an empty one.

    Example:
        >>> import dataclasses, jaxmem as jm
        >>> from jaxmem.architectures import llama
        >>> sizes = dict(vocab=64, width=32, ffn=48, layers=2, heads=4, kv_heads=2, head_dim=8)
        >>> pool = jm.Pages(size=8).empty(llama.Config(**sizes), pages=4, rows=2, most=4)
        >>> pool, _ = jm.pages.alloc(pool, jnp.array([20, 0]))
        >>> blob = jm.pages.take_row(dataclasses.replace(pool, length=pool.room), 0)
        >>> int(blob["length"]), blob["has_page"].tolist()
        (20, [True, True, True, False])
    """
    row = jnp.asarray(row).astype(jnp.int32)
    is_row, row = pool.is_row(row), jnp.clip(row, 0, pool.rows - 1)
    length = jnp.where(is_row, pool.length[row], 0)
    written = jnp.arange(pool.most, dtype=jnp.int32) < pool.pages_of(length)
    ids = jnp.where(written, pool.table[row], 0)
    tails = tuple(x[:, row] for x in pool.tails)
    states = {name: x[:, row] for name, x in pool.states.items()}
    parts = {"pages": take(pool, ids), "tails": tails, "states": states}
    return parts | {"has_page": ids > 0, "length": length}


@takes(row=COUNT, blob=_ROW)
@jax.jit
def put_row(pool: PagePool, row: Array | int, blob: dict[str, Any]) -> tuple[PagePool, Array]:
    """(the pool whose empty row holds what `take_row` gave, whether so).

    If the row is not empty, or too few pages are free, nothing changes. It may be another row than
    before, or one of another pool of the same options.

    Example:
        >>> import dataclasses, jaxmem as jm
        >>> from jaxmem.architectures import llama
        >>> sizes = dict(vocab=64, width=32, ffn=48, layers=2, heads=4, kv_heads=2, head_dim=8)
        >>> pool = jm.Pages(size=8).empty(llama.Config(**sizes), pages=4, rows=2, most=4)
        >>> pool, _ = jm.pages.alloc(pool, jnp.array([20, 0]))
        >>> pool = dataclasses.replace(pool, length=pool.room)
        >>> blob = jm.pages.take_row(pool, 0)
        >>> bool(jm.pages.put_row(pool, 1, blob)[1])  # 3 pages, and 1 is free
        False
        >>> pool, ok = jm.pages.put_row(jm.pages.release(pool, jnp.array([0])), 1, blob)
        >>> bool(ok), pool.length.tolist()
        (True, [0, 20])
    """
    row = jnp.asarray(row).astype(jnp.int32)
    is_row, row = pool.is_row(row), jnp.clip(row, 0, pool.rows - 1)
    has_page = jnp.asarray(blob["has_page"])
    count = has_page.sum(dtype=jnp.int32)
    empty = is_row & (pool.room[row] == 0)
    pool, ids, ok = reserve(pool, jnp.where(empty, count, -1), most=pool.most)
    rank = jnp.cumsum(has_page.astype(jnp.int32)) - 1
    ids = jnp.where(has_page, jnp.take(ids, rank, mode="clip"), 0)  # 0 if not ok
    pool = with_tails(put(pool, ids, blob["pages"]), row, blob["tails"], ok)
    to = jnp.where(ok, row, pool.rows)  # or what takes what nobody wants
    states = {name: x.at[:, to].set(blob["states"][name]) for name, x in pool.states.items()}
    pool = dataclasses.replace(pool, states=states)
    return with_row(pool, row, ids, jnp.asarray(blob["length"]), ok), ok


def with_tails(pool: PagePool, row: Array, tails: tuple[Array, ...], ok: Array) -> PagePool:
    """The pool whose row `row` has the unfinished page `tails`, (L, K, P, w) each, if `ok`."""
    to = jnp.where(ok, row, pool.rows)  # or what takes what nobody wants
    put = lambda a, x: lax.dynamic_update_slice_in_dim(a, x[:, None].astype(a.dtype), to, 1)
    return dataclasses.replace(pool, tails=tuple(map(put, pool.tails, tails)))


def with_row(pool: PagePool, row: Array, ids: Array, tokens: Array, ok: Array) -> PagePool:
    """The pool whose row `row` has pages `ids` (most,) and `tokens` tokens, if `ok`."""
    changed = lambda x, new: x.at[row].set(jnp.where(ok, new.astype(x.dtype), x[row]))
    return dataclasses.replace(
        pool,
        table=changed(pool.table, ids),
        length=changed(pool.length, tokens),
        room=changed(pool.room, tokens),
    )
